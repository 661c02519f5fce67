import json
from pathlib import Path

import pandas as pd

from ngsgd.cli.entry_point import entry_point
from ngsgd.files import atomic_write
from ngsgd.study.analysis import Finish, curves, speedups, summary

with entry_point(snakemake.log[0]):
    experiment = snakemake.params.experiment
    metrics = [Path(path) for path in snakemake.input.metrics]
    tables = {path.parent.name: pd.read_csv(path, sep="\t") for path in metrics}
    finishes = {
        path.parent.name: Finish(
            *(json.loads((path.parent / f"{file}.json").read_text()) for file in ("combination", "evaluation"))
        )
        for path in metrics
    }
    courses = curves(experiment, tables, snakemake.params.turnaround)
    outputs = {"curves": courses, "speedup": speedups(courses), "summary": summary(experiment, courses, finishes)}
    for name, table in outputs.items():
        with atomic_write(snakemake.output[name]) as temporary:
            table.to_csv(temporary, sep="\t", index=False)
