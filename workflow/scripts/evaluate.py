from ngsgd.faces.program import program
from ngsgd.procedure.evaluate import evaluate
from ngsgd.procedure.run import Run

with program(snakemake.log[0]):
    run = Run.open(f"results/{snakemake.wildcards.run}")
    evaluate(run.final, run.data, run.settings.threads, snakemake.output[0])
