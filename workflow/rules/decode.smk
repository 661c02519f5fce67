# Words, where the settings have a decoding graph.


rule graph:
    input:
        INPUTS.graph,
    output:
        "results/{run}/decoding/graph.fst",
    log:
        "results/{run}/logs/graph.log",
    resources:
        **RESOURCES.of("graph"),
    script:
        "../scripts/make_graph.py"


rule decode:
    input:
        INPUTS.decode,
    output:
        "results/{run}/decoding/{split}of{num}.json",
    log:
        "results/{run}/logs/decode/{split}of{num}.log",
    threads: RESOURCES.threads
    resources:
        **RESOURCES.of("decode"),
    shell:
        "ngsgd decode results/{wildcards.run} {wildcards.split} 2> {log}"


rule score_lm_weights:
    input:
        INPUTS.score_lm_weights,
    output:
        "results/{run}/decoding/lm_weights.tsv",
    log:
        "results/{run}/logs/score_lm_weights.log",
    script:
        "../scripts/score_lm_weights.py"
