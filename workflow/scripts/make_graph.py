from pathlib import Path

from ngsgd.cli.entry_point import entry_point
from ngsgd.training.decoding import make_graph
from ngsgd.training.run import Run

with entry_point(snakemake.log[0]):
    run = Run.read(Path(snakemake.params.settings))
    make_graph(run.settings, Path(snakemake.params.corpus).parent, Path(snakemake.output.graph))
