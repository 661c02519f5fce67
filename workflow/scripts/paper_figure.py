from pathlib import Path

import pandas as pd

from ngsgd.faces.program import program
from ngsgd.paper import figures

with program(snakemake.log[0]):
    table, path, asked = pd.read_csv(snakemake.input[0], sep="\t"), Path(snakemake.output.png), snakemake.wildcards
    if hasattr(asked, "optimizer"):
        figures.OF_OPTIMISERS[asked.kind](table, asked.optimizer, path)
    else:
        getattr(figures, asked.figure)(table, path)
