from pathlib import Path

import pandas as pd

from ngsgd.cli.entry_point import entry_point
from ngsgd.study.figures import draw

with entry_point(snakemake.log[0]):
    draw(snakemake.wildcards.figure, pd.read_csv(snakemake.input[0], sep="\t"), Path(snakemake.output.png))
