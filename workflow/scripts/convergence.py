from pathlib import Path

import pandas as pd

from ngsgd.faces.plots import convergence
from ngsgd.faces.program import program

with program(snakemake.log[0]):
    tables = {
        run: pd.read_csv(path, sep="\t") for run, path in zip(snakemake.params.runs, snakemake.input, strict=True)
    }
    convergence(tables, snakemake.wildcards.run, Path(snakemake.output[0]))
