from pathlib import Path

from ngsgd.cli.entry_point import entry_point
from ngsgd.training.realign import relabel_archive
from ngsgd.training.run import Run

with entry_point(snakemake.log[0]):
    p = snakemake.params
    run = Run.read(Path(p.settings))
    splits = [Path(path) for path in p.splits]
    archive = int(snakemake.wildcards.archive)
    relabel_archive(run.settings, Path(p.corpus).parent, splits, archive, Path(snakemake.output.labels))
