# Words, where the settings have a decoding graph.

GRAPH = INPUTS.step(
    reads=dict(settings="results/{run}/settings.json", corpus=INPUTS.corpus),
    writes=dict(graph="results/{run}/decoding/graph.fst"),
)
DECODE = INPUTS.step(
    reads=dict(
        settings="results/{run}/settings.json",
        model="results/{run}/final.safetensors",
        graph="results/{run}/decoding/graph.fst",
        corpus=INPUTS.corpus,
    ),
    writes=dict(words="results/{run}/decoding/{split}of{num}.json"),
    follows_final=True,
)


rule graph:
    input:
        GRAPH.missing,
    output:
        **GRAPH.writes,
    log:
        "results/{run}/logs/graph.log",
    resources:
        **RESOURCES.for_rule("graph"),
    params:
        **GRAPH.params,
        key=INPUTS.graph_key,
    script:
        "../scripts/make_graph.py"


rule decode:
    input:
        DECODE.missing,
    output:
        **DECODE.writes,
    log:
        "results/{run}/logs/decode/{split}of{num}.log",
    threads: RESOURCES.threads
    resources:
        **RESOURCES.for_rule("decode"),
    params:
        **DECODE.params,
    shell:
        "ngsgd decode {wildcards.split} --settings {params.settings} --model {params.model} --graph {params.graph}"
        " --corpus {params.corpus} --output {output.words} 2> {log}"


rule score_lm_weights:
    input:
        words=INPUTS.decoded_words,
    output:
        table="results/{run}/decoding/lm_weights.tsv",
        per_utterance="results/{run}/decoding/per_utt.tsv",
        per_speaker="results/{run}/decoding/per_spk.tsv",
    log:
        "results/{run}/logs/score_lm_weights.log",
    localrule: True
    params:
        settings="results/{run}/settings.json",
        corpus=INPUTS.corpus,
    script:
        "../scripts/score_lm_weights.py"
