# The iterations: N independent jobs from one model, then their average, or the best of them.

TRAIN = INPUTS.step(
    reads=dict(
        settings="results/{run}/settings.json",
        plan="results/{run}/plan.tsv",
        model="results/{run}/models/{iteration}.safetensors",
        archive=INPUTS.archive,
        labels=INPUTS.labels,
    ),
    writes=dict(model="results/{run}/jobs/{iteration}.{job}.safetensors"),
    updates=dict(progress="results/{run}/progress/{iteration}.{job}.json"),
)
AVERAGE = INPUTS.step(
    reads=dict(
        settings="results/{run}/settings.json",
        plan="results/{run}/plan.tsv",
        jobs=INPUTS.jobs,
        previous=INPUTS.previous_model,
    ),
    writes=dict(model="results/{run}/models/{next}.safetensors", report="results/{run}/reports/{next}.json"),
    updates=dict(
        lost_jobs="results/{run}/lost.tsv",
        momenta=INPUTS.momenta,
        progress=INPUTS.previous_progress,
    ),
)


rule train:
    input:
        TRAIN.missing,
    output:
        **TRAIN.writes,
    log:
        "results/{run}/logs/train/{iteration}.{job}.log",
    # Training goes before diagnostics. Not in a study, where hundreds of waiting diagnostics slow Snakemake's scheduler.
    priority: 0 if STUDY else 1
    threads: RESOURCES.threads
    resources:
        **RESOURCES.for_rule("train"),
        **RESOURCES.min_jobs,
        attempts_left=RESOURCES.attempts_left,
    params:
        **TRAIN.params,
    shell:
        "ngsgd train {wildcards.iteration} {wildcards.job} --settings {params.settings} --plan {params.plan}"
        " --model {params.model} --archive {params.archive} --labels {params.labels}"
        " --output {output.model} --progress {params.progress} 2> {log}"
        " || ngsgd failed {wildcards.iteration} {wildcards.job} --plan {params.plan} --model {params.model}"
        " --output {output.model} --progress {params.progress}"
        " --attempts-left {resources.attempts_left} --min-jobs {resources.min_jobs}"


rule average:
    input:
        AVERAGE.missing,
    output:
        **AVERAGE.writes,
    log:
        "results/{run}/logs/average/{next}.log",
    # Retrying cannot help: the failure is permanent, or jobs must run again first.
    retries: 0
    localrule: True
    resources:
        **RESOURCES.keep,
        **RESOURCES.min_jobs,
    params:
        **AVERAGE.params,
    shell:
        "ngsgd end-iteration $(({wildcards.next} - 1)) --settings {params.settings} --plan {params.plan}"
        " --jobs {params.jobs} --previous {params.previous} --momenta {params.momenta}"
        " --output {output.model} --report {output.report}"
        " --lost-jobs {params.lost_jobs} --progress {params.progress} --min-jobs {resources.min_jobs}"
        " --keep-last {resources.keep_last} --keep-every {resources.keep_every} 2> {log}"
