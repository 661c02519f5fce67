from pathlib import Path

import pandas as pd

from ngsgd.cli.entry_point import entry_point
from ngsgd.reporting.plots import convergence

with entry_point(snakemake.log[0]):
    tables = {
        run: pd.read_csv(path, sep="\t") for run, path in zip(snakemake.params.runs, snakemake.input, strict=True)
    }
    convergence(tables, snakemake.wildcards.run, Path(snakemake.output[0]))
