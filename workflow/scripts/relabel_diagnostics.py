from pathlib import Path

from ngsgd.cli.entry_point import entry_point
from ngsgd.training.realign import relabel_diagnostics
from ngsgd.training.run import Run

with entry_point(snakemake.log[0]):
    run, w = Run.open(f"results/{snakemake.wildcards.run}"), snakemake.wildcards
    relabel_diagnostics(run, int(w.alignment), w.scored, Path(snakemake.output[0]))
