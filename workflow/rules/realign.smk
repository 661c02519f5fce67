# New labels in the middle of training, where the settings have realign_times.

ADJUST_PRIORS = INPUTS.step(
    reads=dict(settings="results/{run}/settings.json", model=INPUTS.model_before_alignment, prior=INPUTS.prior),
    writes=dict(model="results/{run}/alignments/{alignment}/model.safetensors"),
)
ALIGN = INPUTS.step(
    reads=dict(
        settings="results/{run}/settings.json",
        model="results/{run}/alignments/{alignment}/model.safetensors",
        corpus=INPUTS.corpus,
    ),
    writes=dict(
        train="results/{run}/alignments/{alignment}/splits/{split}of{num}.train.npy",
        valid="results/{run}/alignments/{alignment}/splits/{split}of{num}.valid.npy",
    ),
)
RELABEL = INPUTS.step(
    reads=dict(settings="results/{run}/settings.json", corpus=INPUTS.corpus, splits=INPUTS.aligned_training_splits),
    writes=dict(labels="results/{run}/alignments/{alignment}/archives/{archive}.npy"),
)
RELABEL_DIAGNOSTICS = INPUTS.step(
    reads=dict(settings="results/{run}/settings.json", corpus=INPUTS.corpus, splits=INPUTS.aligned_splits),
    writes=dict(labels="results/{run}/diagnostics/labels/{alignment}.{scored}.npy"),
)


rule adjust_priors:
    input:
        ADJUST_PRIORS.missing,
    output:
        **ADJUST_PRIORS.writes,
    log:
        "results/{run}/logs/align/{alignment}.priors.log",
    threads: RESOURCES.threads
    resources:
        **RESOURCES.for_rule("adjust_priors"),
    params:
        **ADJUST_PRIORS.params,
    script:
        "../scripts/adjust_priors.py"


rule align:
    input:
        ALIGN.missing,
    output:
        **ALIGN.writes,
    log:
        "results/{run}/logs/align/{alignment}.{split}of{num}.log",
    threads: RESOURCES.threads
    resources:
        **RESOURCES.for_rule("align"),
    params:
        **ALIGN.params,
    shell:
        "ngsgd align {wildcards.split} --settings {params.settings} --model {params.model} --corpus {params.corpus}"
        " --train {output.train} --valid {output.valid} 2> {log}"


rule relabel:
    input:
        RELABEL.missing,
    output:
        **RELABEL.writes,
    log:
        "results/{run}/logs/align/{alignment}.archive{archive}.log",
    resources:
        **RESOURCES.for_rule("relabel"),
    params:
        **RELABEL.params,
    script:
        "../scripts/relabel.py"


rule relabel_diagnostics:
    input:
        RELABEL_DIAGNOSTICS.missing,
    output:
        **RELABEL_DIAGNOSTICS.writes,
    log:
        "results/{run}/logs/align/{alignment}.{scored}.log",
    resources:
        **RESOURCES.for_rule("relabel_diagnostics"),
    params:
        **RELABEL_DIAGNOSTICS.params,
    script:
        "../scripts/relabel_diagnostics.py"
