# Words, where the settings have a decoding graph.


rule graph:
    input:
        for_graph,
    output:
        "results/{run}/decoding/graph.fst",
    log:
        "results/{run}/logs/graph.log",
    resources:
        **rule_resources("graph"),
    script:
        "../scripts/make_graph.py"


rule decode:
    input:
        for_decode,
    output:
        "results/{run}/decoding/{split}of{num}.json",
    log:
        "results/{run}/logs/decode/{split}of{num}.log",
    threads: lambda wildcards: RUNS[wildcards.run].settings.threads
    resources:
        **rule_resources("decode"),
    shell:
        "ngsgd decode results/{wildcards.run} {wildcards.split} 2> {log}"


rule score_lm_weights:
    input:
        lm_weight_inputs,
    output:
        "results/{run}/decoding/lm_weights.tsv",
    log:
        "results/{run}/logs/score_lm_weights.log",
    script:
        "../scripts/score_lm_weights.py"
