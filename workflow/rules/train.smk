# The iterations: N independent jobs from one model, then their average, or the best of them.


rule train:
    input:
        INPUTS.train,
    output:
        "results/{run}/jobs/{iteration}.{job}.safetensors",
    log:
        "results/{run}/logs/train/{iteration}.{job}.log",
    # Training goes before diagnostics. Not in a study, where hundreds of waiting diagnostics slow Snakemake's scheduler.
    priority: 0 if STUDY else 1
    threads: RESOURCES.threads
    resources:
        **RESOURCES.of("train"),
        **RESOURCES.min_jobs,
        attempts_left=RESOURCES.attempts_left,
    shell:
        "ngsgd train results/{wildcards.run} {wildcards.iteration} {wildcards.job} 2> {log}"
        " || ngsgd failed results/{wildcards.run} {wildcards.iteration} {wildcards.job}"
        " --attempts-left {resources.attempts_left} --min-jobs {resources.min_jobs}"


rule average:
    input:
        INPUTS.average,
    output:
        "results/{run}/models/{next}.safetensors",
        "results/{run}/reports/{next}.json",
    log:
        "results/{run}/logs/average/{next}.log",
    # Retrying cannot help: the failure is permanent, or jobs must run again first.
    retries: 0
    resources:
        **RESOURCES.keep,
        **RESOURCES.min_jobs,
    shell:
        "ngsgd end-iteration results/{wildcards.run} $(({wildcards.next} - 1)) --min-jobs {resources.min_jobs}"
        " --keep-last {resources.keep_last} --keep-every {resources.keep_every} 2> {log}"
