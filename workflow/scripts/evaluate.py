from ngsgd.faces.program import program
from ngsgd.procedure.evaluate import evaluate
from ngsgd.procedure.run import Run

with program(snakemake.log[0]):
    evaluate(Run.open(f"results/{snakemake.wildcards.run}"), snakemake.output[0])
