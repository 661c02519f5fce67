from ngsgd.cli.entry_point import entry_point
from ngsgd.files import atomic_write
from ngsgd.study.cost import costs
from ngsgd.training.run import Run

with entry_point(snakemake.log[0]):
    table = costs({name: Run.open(folder) for name, folder in snakemake.params.runs.items()})
    with atomic_write(snakemake.output[0]) as temporary:
        table.to_csv(temporary, sep="\t", index=False)
