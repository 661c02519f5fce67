# The final model, from the last ones of training.

COMBINE = INPUTS.step(
    reads=dict(
        settings="results/{run}/settings.json",
        plan="results/{run}/plan.tsv",
        models=INPUTS.models_to_combine,
        valid=INPUTS.valid,
        labels=INPUTS.labels_for_combination,
        prior=INPUTS.prior,
        corpus=INPUTS.corpus,
    ),
    writes=dict(model="results/{run}/final.safetensors", report="results/{run}/combination.json"),
)


rule combine:
    input:
        COMBINE.missing,
    output:
        **COMBINE.writes,
    log:
        "results/{run}/logs/combine.log",
    threads: RESOURCES.threads
    resources:
        **RESOURCES.for_rule("combine"),
    params:
        **COMBINE.params,
    script:
        "../scripts/combine.py"
