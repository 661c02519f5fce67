# The corpus: features, a class for every frame, and the subsets. Its folder is named after its settings and contents.


rule prepare_digits:
    output:
        expand(
            "results/data/{{data}}/{subset}.{part}",
            subset=["train", "valid", "test"],
            part=["features.npy", "labels.npy", "utterances.tsv"],
        ),
        info="results/data/{data}/corpus.json",
    log:
        "results/logs/{data}/prepare_digits.log",
    conda:
        "../envs/ngsgd.yaml"
    params:
        settings=lambda wildcards: DATA[wildcards.data].of_corpus(),
    script:
        "../scripts/prepare_digits.py"
