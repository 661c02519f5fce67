# New labels in the middle of training, where the settings have realign_times.


rule adjust_priors:
    input:
        INPUTS.adjust_priors,
    output:
        "results/{run}/alignments/{alignment}/model.safetensors",
    log:
        "results/{run}/logs/align/{alignment}.priors.log",
    threads: RESOURCES.threads
    resources:
        **RESOURCES.of("adjust_priors"),
    script:
        "../scripts/adjust_priors.py"


rule align:
    input:
        INPUTS.align,
    output:
        "results/{run}/alignments/{alignment}/splits/{split}of{num}.train.npy",
        "results/{run}/alignments/{alignment}/splits/{split}of{num}.valid.npy",
    log:
        "results/{run}/logs/align/{alignment}.{split}of{num}.log",
    threads: RESOURCES.threads
    resources:
        **RESOURCES.of("align"),
    shell:
        "ngsgd align results/{wildcards.run} {wildcards.alignment} {wildcards.split} 2> {log}"


rule relabel:
    input:
        INPUTS.relabel,
    output:
        "results/{run}/alignments/{alignment}/archives/{archive}.npy",
    log:
        "results/{run}/logs/align/{alignment}.archive{archive}.log",
    resources:
        **RESOURCES.of("relabel"),
    script:
        "../scripts/relabel.py"


rule relabel_diagnostics:
    input:
        INPUTS.relabel_diagnostics,
    output:
        "results/{run}/diagnostics/labels/{alignment}.{scored}.npy",
    log:
        "results/{run}/logs/align/{alignment}.{scored}.log",
    resources:
        **RESOURCES.of("relabel_diagnostics"),
    script:
        "../scripts/relabel_diagnostics.py"
