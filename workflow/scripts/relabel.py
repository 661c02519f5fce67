from pathlib import Path

from ngsgd.cli.entry_point import entry_point
from ngsgd.training.realign import relabel_archive
from ngsgd.training.run import Run

with entry_point(snakemake.log[0]):
    run, w = Run.open(f"results/{snakemake.wildcards.run}"), snakemake.wildcards
    output = Path(snakemake.output[0])
    relabel_archive(run, int(w.alignment), int(w.archive), output)
