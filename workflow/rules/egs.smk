# The feature transform, and the examples in randomised archives. The folder of a set of examples is named after all
# settings that they depend on, those of the corpus among them.


rule transform:
    input:
        info=egs_corpus,
    output:
        transform="results/egs/{egs}/transform.npy",
    log:
        "results/logs/{egs}/transform.log",
    resources:
        **rule_resources("transform"),
    params:
        settings=lambda wildcards: EGS[wildcards.egs].of_examples(),
    script:
        "../scripts/transform.py"


rule distribute:
    input:
        info=egs_corpus,
    output:
        distributed=temp("results/egs/{egs}/distributed/{split}of{num}.npy"),
    log:
        "results/logs/{egs}/distribute.{split}of{num}.log",
    resources:
        **rule_resources("distribute"),
    params:
        settings=lambda wildcards: EGS[wildcards.egs].of_examples(),
    script:
        "../scripts/distribute.py"


rule shuffle:
    input:
        info=egs_corpus,
        distributed=distributed,
    output:
        archive="results/egs/{egs}/archives/{archive}.npy",
    log:
        "results/logs/{egs}/shuffle.{archive}.log",
    resources:
        **rule_resources("shuffle"),
    params:
        settings=lambda wildcards: EGS[wildcards.egs].of_examples(),
    script:
        "../scripts/shuffle.py"


rule sample:
    input:
        info=egs_corpus,
    output:
        examples="results/egs/{egs}/{subset}-{frames}.npy",
    log:
        "results/logs/{egs}/{subset}-{frames}.log",
    resources:
        **rule_resources("sample"),
    params:
        settings=lambda wildcards: EGS[wildcards.egs].of_examples(),
    script:
        "../scripts/sample.py"
