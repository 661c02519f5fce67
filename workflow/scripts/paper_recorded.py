import pandas as pd

from ngsgd.faces.program import program
from ngsgd.files import whole
from ngsgd.paper.recorded import beside, read

with program(snakemake.log[0]):
    table = beside(pd.read_csv(snakemake.input.curves, sep="\t"), read(snakemake.input.recorded).table)
    with whole(snakemake.output[0]) as temporary:
        table.to_csv(temporary, sep="\t", index=False)
