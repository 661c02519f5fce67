from ngsgd.faces.program import program
from ngsgd.procedure.run import Run
from ngsgd.procedure.words import make_graph

with program(snakemake.log[0]):
    make_graph(Run.open(f"results/{snakemake.wildcards.run}"))
