import json
from pathlib import Path

import pandas as pd

from ngsgd.faces.program import program
from ngsgd.files import whole
from ngsgd.paper.analysis import Finish, curves, speedups, summary

with program(snakemake.log[0]):
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
    made = {"curves": courses, "speedup": speedups(courses), "summary": summary(experiment, courses, finishes)}
    for name, table in made.items():
        with whole(snakemake.output[name]) as temporary:
            table.to_csv(temporary, sep="\t", index=False)
