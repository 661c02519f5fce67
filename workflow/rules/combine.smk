# The final model, from the last ones of training.


rule combine:
    input:
        for_combine,
    output:
        "results/{run}/final.safetensors",
        "results/{run}/combination.json",
    log:
        "results/{run}/logs/combine.log",
    threads: lambda wildcards: RUNS[wildcards.run].settings.threads
    resources:
        **rule_resources("combine"),
    script:
        "../scripts/combine.py"
