from ngsgd.cli.entry_point import entry_point
from ngsgd.training.evaluate import evaluate
from ngsgd.training.run import Run

with entry_point(snakemake.log[0]):
    evaluate(Run.open(f"results/{snakemake.wildcards.run}"), snakemake.output[0])
