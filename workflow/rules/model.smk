# The plan of a run, and the model that it starts from.


# Makes sure that the run's folder holds only results of the current settings and data: everything else in a run comes
# after it. Its output is named after the settings, so that it is missing if they change.
checkpoint activate_recipe:
    input:
        INPUTS.corpus_of_run,
    output:
        "results/{run}/recipe/{key}.json",
    log:
        "results/logs/{run}/activate_recipe.{key}.log",
    params:
        settings=lambda wildcards: RUNS[wildcards.run].settings.values(),
        data=lambda wildcards: str(RUNS[wildcards.run].data),
        examples=lambda wildcards: str(RUNS[wildcards.run].examples),
        origin=lambda wildcards: RUNS[wildcards.run].origin,
    script:
        "../scripts/activate_recipe.py"


rule plan:
    input:
        INPUTS.plan,
    output:
        "results/{run}/plan.tsv",
        "results/{run}/settings.json",
    log:
        "results/{run}/logs/plan.log",
    script:
        "../scripts/plan.py"


rule initial_model:
    input:
        INPUTS.initial_model,
    output:
        "results/{run}/models/0.safetensors",
    log:
        "results/{run}/logs/initial_model.log",
    params:
        origin=lambda wildcards: initial_model_path(RUNS[wildcards.run].settings),
    script:
        "../scripts/initial_model.py"
