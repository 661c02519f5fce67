from pathlib import Path

from ngsgd.cli.entry_point import entry_point
from ngsgd.errors import DataError
from ngsgd.training.decoding import make_graph
from ngsgd.training.run import Run

with entry_point(snakemake.log[0]):
    run = Run.read(Path(snakemake.params.settings))
    make_graph(run.settings, Path(snakemake.params.corpus).parent, Path(snakemake.output.graph))
    if run.settings.graph_key() != snakemake.params.key:
        raise DataError(f"graph: {run.settings.path('graph')} was changed while it was read; run again")
