# The final model, from the last ones of training.


rule combine:
    input:
        INPUTS.combine,
    output:
        "results/{run}/final.safetensors",
        "results/{run}/combination.json",
    log:
        "results/{run}/logs/combine.log",
    threads: RESOURCES.threads
    resources:
        **RESOURCES.of("combine"),
    script:
        "../scripts/combine.py"
