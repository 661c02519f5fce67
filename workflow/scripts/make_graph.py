from ngsgd.cli.entry_point import entry_point
from ngsgd.training.decoding import make_graph
from ngsgd.training.run import Run

with entry_point(snakemake.log[0]):
    make_graph(Run.open(f"results/{snakemake.wildcards.run}"))
