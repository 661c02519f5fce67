from pathlib import Path

import pandas as pd

from ngsgd.faces.program import program
from ngsgd.paper.figures import draw

with program(snakemake.log[0]):
    draw(snakemake.wildcards.figure, pd.read_csv(snakemake.input[0], sep="\t"), Path(snakemake.output.png))
