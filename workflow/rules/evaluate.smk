# How good the models are: the diagnostics of each while training goes on, and the final one on the test set.

DIAGNOSE = INPUTS.step(
    reads=dict(
        settings="results/{run}/settings.json",
        plan="results/{run}/plan.tsv",
        model="results/{run}/models/{iteration}.safetensors",
        examples=INPUTS.diagnostic_examples,
        labels=INPUTS.diagnostic_labels,
    ),
    writes=dict(scores="results/{run}/diagnostics/{iteration}.json"),
)
EVALUATE = INPUTS.step(
    reads=dict(
        settings="results/{run}/settings.json",
        model="results/{run}/final.safetensors",
        corpus=INPUTS.corpus,
    ),
    writes=dict(scores="results/{run}/evaluation.json"),
    follows_final=True,
)


rule diagnose:
    input:
        DIAGNOSE.missing,
    output:
        **DIAGNOSE.writes,
    log:
        "results/{run}/logs/diagnose/{iteration}.log",
    threads: RESOURCES.threads
    resources:
        **RESOURCES.for_rule("diagnose"),
        **RESOURCES.keep,
    params:
        **DIAGNOSE.params,
    shell:
        "ngsgd diagnose --settings {params.settings} --plan {params.plan} --model {params.model}"
        " --examples {params.examples} --labels {params.labels} --output {output.scores}"
        " --keep-last {resources.keep_last} --keep-every {resources.keep_every} 2> {log}"


rule metrics:
    input:
        INPUTS.metrics,
    output:
        report("results/{run}/metrics.tsv", caption="../report/metrics.rst", category="{run}"),
    log:
        "results/{run}/logs/metrics.log",
    localrule: True
    params:
        settings="results/{run}/settings.json",
    script:
        "../scripts/metrics.py"


rule evaluate:
    input:
        EVALUATE.missing,
        words=INPUTS.decoded,
    output:
        scores=report(EVALUATE.writes["scores"], caption="../report/evaluation.rst", category="{run}"),
    log:
        "results/{run}/logs/evaluate.log",
    threads: RESOURCES.threads
    resources:
        **RESOURCES.for_rule("evaluate"),
    params:
        **EVALUATE.params,
    script:
        "../scripts/evaluate.py"
