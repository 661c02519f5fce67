from pathlib import Path

import pandas as pd

from ngsgd.cli.entry_point import entry_point
from ngsgd.files import atomic_write
from ngsgd.study.grid import tuning, write_rates

with entry_point(snakemake.log[0]):
    experiment = snakemake.params.experiment
    tables = {
        run: pd.read_csv(path, sep="\t") for run, path in zip(experiment.sweep_runs(), snakemake.input, strict=True)
    }
    table = tuning(experiment, tables)
    with atomic_write(snakemake.output.table) as temporary:
        table.to_csv(temporary, sep="\t", index=False)
    write_rates(table, experiment, Path(snakemake.output.rates))
