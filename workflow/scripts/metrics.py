from ngsgd.faces.metrics import metrics_table
from ngsgd.faces.program import program
from ngsgd.files import whole
from ngsgd.procedure.run import Run

with program(snakemake.log[0]):
    table = metrics_table(Run.open(f"results/{snakemake.wildcards.run}"))
    with whole(snakemake.output[0]) as temporary:
        table.to_csv(temporary, sep="\t", index=False)
