# The iterations: N independent jobs from one model, then their average, or the best of them.


rule train:
    input:
        for_train,
    output:
        "results/{run}/jobs/{iteration}.{job}.safetensors",
    log:
        "results/{run}/logs/train/{iteration}.{job}.log",
    # Before all that only tells how good a model is. Not so in a study, where that makes hundreds of jobs wait, all of
    # which Snakemake looks at each time that it starts some.
    priority: 0 if STUDY else 1
    threads: lambda wildcards: RUNS[wildcards.run].settings.threads
    resources:
        **rule_resources("train"),
        attempts_left=attempts_left,
        min_jobs=MIN_JOBS,
    shell:
        "ngsgd train results/{wildcards.run} {wildcards.iteration} {wildcards.job} 2> {log}"
        " || ngsgd failed results/{wildcards.run} {wildcards.iteration} {wildcards.job}"
        " --attempts-left {resources.attempts_left} --min-jobs {resources.min_jobs}"


rule average:
    input:
        for_average,
    output:
        "results/{run}/models/{next}.safetensors",
        "results/{run}/reports/{next}.json",
    log:
        "results/{run}/logs/average/{next}.log",
    # It fails for what does not go away, or takes the jobs that it did not find again.
    retries: 0
    resources:
        **KEEP,
        min_jobs=MIN_JOBS,
    shell:
        "ngsgd end-iteration results/{wildcards.run} $(({wildcards.next} - 1)) --min-jobs {resources.min_jobs}"
        " --keep-last {resources.keep_last} --keep-every {resources.keep_every} 2> {log}"
