# The plan of a run, and the model that it starts from.


# Sees that the run's folder holds nothing but what the settings and data in force made: everything that is made in a
# run comes after it. Its output is named after the settings, so that its absence tells of their change.
checkpoint activate_recipe:
    input:
        run_corpus,
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
        for_plan,
    output:
        "results/{run}/plan.tsv",
        "results/{run}/settings.json",
    log:
        "results/{run}/logs/plan.log",
    script:
        "../scripts/plan.py"


rule initial_model:
    input:
        for_initial_model,
    output:
        "results/{run}/models/0.safetensors",
    log:
        "results/{run}/logs/initial_model.log",
    params:
        origin=lambda wildcards: (
            str(initial_model_path(RUNS[wildcards.run].settings)) if RUNS[wildcards.run].origin else None
        ),
    script:
        "../scripts/initial_model.py"
