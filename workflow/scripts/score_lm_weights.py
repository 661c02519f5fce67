from pathlib import Path

from ngsgd.cli.entry_point import entry_point
from ngsgd.training.decoding import score_lm_weights, write_lm_weight_scores
from ngsgd.training.run import Run

with entry_point(snakemake.log[0]):
    run = Run.read(Path(snakemake.params.settings))
    words = [Path(path) for path in snakemake.input.words]
    rows = score_lm_weights(run.settings, Path(snakemake.params.corpus).parent, words)
    write_lm_weight_scores(rows, snakemake.output.table)
