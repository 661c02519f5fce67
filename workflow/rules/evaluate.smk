# How good the models are: the diagnostics of each while training goes on, and the final one on the test set.


rule diagnose:
    input:
        INPUTS.diagnose,
    output:
        "results/{run}/diagnostics/{iteration}.json",
    log:
        "results/{run}/logs/diagnose/{iteration}.log",
    threads: RESOURCES.threads
    resources:
        **RESOURCES.of("diagnose"),
        **RESOURCES.keep,
    shell:
        "ngsgd diagnose results/{wildcards.run} {wildcards.iteration}"
        " --keep-last {resources.keep_last} --keep-every {resources.keep_every} 2> {log}"


rule metrics:
    input:
        INPUTS.metrics,
    output:
        report("results/{run}/metrics.tsv", caption="../report/metrics.rst", category="{run}"),
    log:
        "results/{run}/logs/metrics.log",
    script:
        "../scripts/metrics.py"


rule evaluate:
    input:
        INPUTS.evaluate,
    output:
        report("results/{run}/evaluation.json", caption="../report/evaluation.rst", category="{run}"),
    log:
        "results/{run}/logs/evaluate.log",
    threads: RESOURCES.threads
    resources:
        **RESOURCES.of("evaluate"),
    script:
        "../scripts/evaluate.py"
