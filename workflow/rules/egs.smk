# The feature transform, and the examples in randomised archives. The folder of a set of examples is named after all
# settings that they depend on, those of the corpus among them.


rule transform:
    input:
        info=corpus_of_egs,
    output:
        transform="results/egs/{egs}/transform.npy",
    log:
        "results/logs/{egs}/transform.log",
    conda:
        "../envs/ngsgd.yaml"
    resources:
        **resources_of("transform"),
    params:
        settings=lambda wildcards: EGS[wildcards.egs].of_examples(),
    script:
        "../scripts/transform.py"


rule deal:
    input:
        info=corpus_of_egs,
    output:
        dealt=temp("results/egs/{egs}/dealt/{split}of{num}.npy"),
    log:
        "results/logs/{egs}/deal.{split}of{num}.log",
    conda:
        "../envs/ngsgd.yaml"
    resources:
        **resources_of("deal"),
    params:
        settings=lambda wildcards: EGS[wildcards.egs].of_examples(),
    script:
        "../scripts/deal.py"


rule shuffle:
    input:
        info=corpus_of_egs,
        dealt=dealt,
    output:
        archive="results/egs/{egs}/archives/{archive}.npy",
    log:
        "results/logs/{egs}/shuffle.{archive}.log",
    conda:
        "../envs/ngsgd.yaml"
    resources:
        **resources_of("shuffle"),
    params:
        settings=lambda wildcards: EGS[wildcards.egs].of_examples(),
    script:
        "../scripts/shuffle.py"


rule sample:
    input:
        info=corpus_of_egs,
    output:
        examples="results/egs/{egs}/{subset}-{frames}.npy",
    log:
        "results/logs/{egs}/{subset}-{frames}.log",
    conda:
        "../envs/ngsgd.yaml"
    resources:
        **resources_of("sample"),
    params:
        settings=lambda wildcards: EGS[wildcards.egs].of_examples(),
    script:
        "../scripts/sample.py"
