# Words, where the settings have a decoding graph.


rule graph:
    input:
        for_graph,
    output:
        "results/{run}/decoding/graph.fst",
    log:
        "results/{run}/logs/graph.log",
    conda:
        "../envs/ngsgd.yaml"
    resources:
        **resources_of("graph"),
    script:
        "../scripts/make_graph.py"


rule decode:
    input:
        for_decode,
    output:
        "results/{run}/decoding/{split}of{num}.json",
    log:
        "results/{run}/logs/decode/{split}of{num}.log",
    conda:
        "../envs/ngsgd.yaml"
    threads: lambda wildcards: RUNS[wildcards.run].settings.threads
    resources:
        **resources_of("decode"),
    shell:
        "ngsgd decode results/{wildcards.run} {wildcards.split} 2> {log}"


rule sweep:
    input:
        for_sweep,
    output:
        "results/{run}/decoding/sweep.tsv",
    log:
        "results/{run}/logs/sweep.log",
    conda:
        "../envs/ngsgd.yaml"
    script:
        "../scripts/sweep.py"
