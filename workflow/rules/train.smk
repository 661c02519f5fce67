# The iterations: N independent jobs from one model, then their average, or the best of them.


rule train:
    input:
        for_train,
    output:
        "results/{run}/jobs/{iteration}.{job}.safetensors",
    log:
        "results/{run}/logs/train/{iteration}.{job}.log",
    benchmark:
        "results/{run}/benchmarks/train/{iteration}.{job}.tsv"
    conda:
        "../envs/ngsgd.yaml"
    threads: lambda wildcards: RUNS[wildcards.run].settings.threads
    shell:
        "ngsgd train results/{wildcards.run} {wildcards.iteration} {wildcards.job} 2> {log}"


rule average:
    input:
        for_average,
    output:
        "results/{run}/models/{next}.safetensors",
        "results/{run}/reports/{next}.json",
    log:
        "results/{run}/logs/average/{next}.log",
    benchmark:
        "results/{run}/benchmarks/average/{next}.tsv"
    conda:
        "../envs/ngsgd.yaml"
    shell:
        "ngsgd end-iteration results/{wildcards.run} $(({wildcards.next} - 1)) 2> {log}"
