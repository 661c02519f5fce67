# The plan of a run, and the model that it starts from.

PLAN = INPUTS.step(
    reads=dict(recipe=INPUTS.recipe),
    writes=dict(plan="results/{run}/plan.tsv", settings="results/{run}/settings.json"),
)
INITIAL_MODEL = INPUTS.step(
    reads=dict(settings="results/{run}/settings.json", corpus=INPUTS.corpus, origin=INPUTS.origin),
    writes=dict(model="results/{run}/models/0.safetensors"),
)


# Makes sure that the run's folder holds only results of the current settings and data: everything else in a run comes
# after it. Its output is named after the settings, so that it is missing if they change.
checkpoint activate_recipe:
    input:
        INPUTS.corpus,
    output:
        "results/{run}/recipe/{key}.json",
    log:
        "results/logs/{run}/activate_recipe.{key}.log",
    localrule: True
    params:
        settings=lambda wildcards: RUNS[wildcards.run].settings.values(),
        data=lambda wildcards: str(RUNS[wildcards.run].data),
        examples=lambda wildcards: str(RUNS[wildcards.run].examples),
        origin=lambda wildcards: RUNS[wildcards.run].origin,
    script:
        "../scripts/activate_recipe.py"


rule plan:
    input:
        PLAN.missing,
    output:
        **PLAN.writes,
    log:
        "results/{run}/logs/plan.log",
    localrule: True
    params:
        **PLAN.params,
    script:
        "../scripts/plan.py"


rule initial_model:
    input:
        INITIAL_MODEL.missing,
    output:
        **INITIAL_MODEL.writes,
    log:
        "results/{run}/logs/initial_model.log",
    localrule: True
    params:
        **INITIAL_MODEL.params,
    script:
        "../scripts/initial_model.py"
