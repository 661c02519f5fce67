from pathlib import Path

from ngsgd.cli.entry_point import entry_point
from ngsgd.files import atomic_write
from ngsgd.reporting.metrics import metrics_table
from ngsgd.training.run import Run

with entry_point(snakemake.log[0]):
    table = metrics_table(Run.read(Path(snakemake.params.settings)))
    with atomic_write(snakemake.output[0]) as temporary:
        table.to_csv(temporary, sep="\t", index=False)
