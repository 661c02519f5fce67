from ngsgd.cli.entry_point import entry_point
from ngsgd.training.decoding import score_lm_weights, write_lm_weight_scores
from ngsgd.training.run import Run

with entry_point(snakemake.log[0]):
    run = Run.open(f"results/{snakemake.wildcards.run}")
    write_lm_weight_scores(score_lm_weights(run), run.lm_weight_scores)
