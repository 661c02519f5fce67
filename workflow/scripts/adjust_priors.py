from pathlib import Path

from ngsgd.cli.entry_point import entry_point
from ngsgd.training.realign import adjust_priors
from ngsgd.training.run import Run

with entry_point(snakemake.log[0]):
    p = snakemake.params
    run = Run.read(Path(p.settings))
    adjust_priors(run.settings, Path(p.model), Path(p.prior), Path(snakemake.output.model))
