from ngsgd.faces.program import program
from ngsgd.files import whole
from ngsgd.paper.cost import costs
from ngsgd.procedure.run import Run

with program(snakemake.log[0]):
    table = costs({name: Run.open(folder) for name, folder in snakemake.params.runs.items()})
    with whole(snakemake.output[0]) as temporary:
        table.to_csv(temporary, sep="\t", index=False)
