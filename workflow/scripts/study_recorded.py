import pandas as pd

from ngsgd.cli.entry_point import entry_point
from ngsgd.files import atomic_write
from ngsgd.study.recorded import compare_recorded, read

with entry_point(snakemake.log[0]):
    table = compare_recorded(pd.read_csv(snakemake.input.curves, sep="\t"), read(snakemake.input.recorded).table)
    with atomic_write(snakemake.output[0]) as temporary:
        table.to_csv(temporary, sep="\t", index=False)
