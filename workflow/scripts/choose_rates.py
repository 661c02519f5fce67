from pathlib import Path

import pandas as pd

from ngsgd.faces.program import program
from ngsgd.files import whole
from ngsgd.paper.grid import tuning, write_rates

with program(snakemake.log[0]):
    experiment = snakemake.params.experiment
    tables = {
        run: pd.read_csv(path, sep="\t") for run, path in zip(experiment.sweep_runs(), snakemake.input, strict=True)
    }
    table = tuning(experiment, tables)
    with whole(snakemake.output.table) as temporary:
        table.to_csv(temporary, sep="\t", index=False)
    write_rates(table, experiment, Path(snakemake.output.rates))
