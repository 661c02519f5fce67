from ngsgd.faces.program import program
from ngsgd.procedure.plan import read_plan
from ngsgd.procedure.realign import adjust_priors
from ngsgd.procedure.run import Run

with program(snakemake.log[0]):
    run = Run.open(f"results/{snakemake.wildcards.run}")
    alignment = int(snakemake.wildcards.alignment)
    x = next(job.iteration for job in read_plan(run.plan) if job.alignment == alignment)
    adjust_priors(run, alignment, x)
