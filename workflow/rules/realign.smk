# New labels in the middle of training, where the settings have realign_times.


rule adjust_priors:
    input:
        for_adjust_priors,
    output:
        "results/{run}/alignments/{alignment}/model.safetensors",
    log:
        "results/{run}/logs/align/{alignment}.priors.log",
    threads: lambda wildcards: RUNS[wildcards.run].settings.threads
    resources:
        **rule_resources("adjust_priors"),
    script:
        "../scripts/adjust_priors.py"


rule align:
    input:
        for_align,
    output:
        "results/{run}/alignments/{alignment}/splits/{split}of{num}.train.npy",
        "results/{run}/alignments/{alignment}/splits/{split}of{num}.valid.npy",
    log:
        "results/{run}/logs/align/{alignment}.{split}of{num}.log",
    threads: lambda wildcards: RUNS[wildcards.run].settings.threads
    resources:
        **rule_resources("align"),
    shell:
        "ngsgd align results/{wildcards.run} {wildcards.alignment} {wildcards.split} 2> {log}"


rule relabel:
    input:
        for_relabel,
    output:
        "results/{run}/alignments/{alignment}/archives/{archive}.npy",
    log:
        "results/{run}/logs/align/{alignment}.archive{archive}.log",
    resources:
        **rule_resources("relabel"),
    script:
        "../scripts/relabel.py"


rule relabel_diagnostics:
    input:
        for_relabel_diagnostics,
    output:
        "results/{run}/diagnostics/labels/{alignment}.{scored}.npy",
    log:
        "results/{run}/logs/align/{alignment}.{scored}.log",
    resources:
        **rule_resources("relabel_diagnostics"),
    script:
        "../scripts/relabel_diagnostics.py"
