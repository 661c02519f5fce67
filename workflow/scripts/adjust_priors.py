from ngsgd.cli.entry_point import entry_point
from ngsgd.training.plan import read_plan
from ngsgd.training.realign import adjust_priors
from ngsgd.training.run import Run

with entry_point(snakemake.log[0]):
    run = Run.open(f"results/{snakemake.wildcards.run}")
    alignment = int(snakemake.wildcards.alignment)
    x = next(job.iteration for job in read_plan(run.plan) if job.alignment == alignment)
    adjust_priors(run, alignment, x)
