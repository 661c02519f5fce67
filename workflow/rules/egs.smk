# The feature transform, and the examples in randomised archives. The folder of a set of examples is named after all
# settings that they depend on, those of the corpus among them.


rule transform:
    input:
        info=INPUTS.corpus_of_examples,
    output:
        transform="results/egs/{egs}/transform.npy",
    log:
        "results/logs/{egs}/transform.log",
    resources:
        **RESOURCES.for_rule("transform"),
    params:
        settings=lambda wildcards: EXAMPLES[wildcards.egs].values_for_examples(),
    script:
        "../scripts/transform.py"


rule distribute:
    input:
        info=INPUTS.corpus_of_examples,
    output:
        distributed=temp("results/egs/{egs}/distributed/{split}of{num}.npy"),
    log:
        "results/logs/{egs}/distribute.{split}of{num}.log",
    resources:
        **RESOURCES.for_rule("distribute"),
    params:
        settings=lambda wildcards: EXAMPLES[wildcards.egs].values_for_examples(),
    script:
        "../scripts/distribute.py"


rule shuffle:
    input:
        info=INPUTS.corpus_of_examples,
        distributed=INPUTS.distributed,
    output:
        archive="results/egs/{egs}/archives/{archive}.npy",
    log:
        "results/logs/{egs}/shuffle.{archive}.log",
    resources:
        **RESOURCES.for_rule("shuffle"),
    params:
        settings=lambda wildcards: EXAMPLES[wildcards.egs].values_for_examples(),
    script:
        "../scripts/shuffle.py"


rule sample:
    input:
        info=INPUTS.corpus_of_examples,
    output:
        examples="results/egs/{egs}/{subset}-{frames}.npy",
    log:
        "results/logs/{egs}/{subset}-{frames}.log",
    resources:
        **RESOURCES.for_rule("sample"),
    params:
        settings=lambda wildcards: EXAMPLES[wildcards.egs].values_for_examples(),
    script:
        "../scripts/sample.py"
