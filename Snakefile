import sys

import snakemake

# Snakemake's DAG recurses once a rule of a chain, and training is a chain of two rules an iteration.
sys.setrecursionlimit(200_000)


include: "workflow/rules/common.smk"
include: "workflow/rules/call.smk"


# The first rule is the default target, in a workflow that uses this one as a module only if it has no earlier rule.
rule all:
    input:
        expand(
            "results/{run}/{made}",
            run=RUNS,
            made=["plan.tsv", "settings.json", "final.safetensors", "combination.json"],
        ),
        expand("results/{run}/evaluation.json", run=RUNS),
        expand("results/{run}/metrics.tsv", run=RUNS),
        expand("results/{run}/figures/convergence.png", run=RUNS),
        INPUTS.all_models,
        INPUTS.all_lm_weight_scores,
    localrule: True


include: "workflow/rules/data.smk"
include: "workflow/rules/egs.smk"
include: "workflow/rules/model.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/realign.smk"
include: "workflow/rules/combine.smk"
include: "workflow/rules/decode.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/figures.smk"


if STUDY:

    include: "workflow/rules/study.smk"
