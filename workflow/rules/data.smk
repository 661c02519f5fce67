# The corpus: features, a class for every frame, and the subsets. Its folder is named after its settings and contents.


# A corpus is prepared in parts, each of which is a corpus of its own.
rule prepare_part:
    output:
        temp(expand("results/data/{{data}}/parts/{{split}}of{{num}}/{file}", file=CORPUS_FILES)),
        info=temp("results/data/{data}/parts/{split}of{num}/corpus.json"),
    log:
        "results/logs/{data}/prepare.{split}of{num}.log",
    resources:
        **RESOURCES.for_rule("prepare_part"),
    params:
        settings=lambda wildcards: CORPORA[wildcards.data].values_for_corpus(),
    script:
        "../scripts/prepare_part.py"


rule assemble:
    input:
        INPUTS.part_files,
        infos=INPUTS.part_infos,
    output:
        expand("results/data/{{data}}/{file}", file=CORPUS_FILES),
        info="results/data/{data}/corpus.json",
    log:
        "results/logs/{data}/assemble.log",
    resources:
        **RESOURCES.for_rule("assemble"),
    params:
        max_bad_share=lambda wildcards: CORPORA[wildcards.data].corpus_settings.max_bad_utterance_share,
        max_unaligned_share=lambda wildcards: CORPORA[wildcards.data].corpus_settings.max_unaligned_utterance_share,
    script:
        "../scripts/assemble.py"
