from pathlib import Path

from ngsgd.cli.entry_point import entry_point
from ngsgd.training.realign import relabel_diagnostics
from ngsgd.training.run import Run

with entry_point(snakemake.log[0]):
    p = snakemake.params
    run = Run.read(Path(p.settings))
    splits = [Path(path) for path in p.splits]
    subset = snakemake.wildcards.scored
    relabel_diagnostics(run.settings, Path(p.corpus).parent, splits, subset, Path(snakemake.output.labels))
