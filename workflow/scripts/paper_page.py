from pathlib import Path

import pandas as pd

from ngsgd.data.corpus import read_info
from ngsgd.faces.program import program
from ngsgd.files import write_text
from ngsgd.paper.claims import claims
from ngsgd.paper.report import Findings, page

with program(snakemake.log[0]):
    study, findings = snakemake.params.study, {}
    for (name, experiment), info in zip(study.experiments.items(), snakemake.input.infos, strict=True):
        tables = {
            table: pd.read_csv(f"results/paper/{name}/{table}.tsv", sep="\t")
            for table in ("curves", "speedup", "summary", "tuning", "cost")
            if table != "cost" or not experiment.methods
        }
        findings[name] = Findings(
            experiment,
            read_info(Path(info).parent),
            claims(*(tables.get(table) for table in ("curves", "speedup", "summary", "cost"))),
            *(tables.get(table) for table in ("summary", "speedup", "tuning", "cost")),
        )
    write_text(snakemake.output[0], page(findings, Path("paper")))
