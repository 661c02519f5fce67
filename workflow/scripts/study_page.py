from pathlib import Path

import pandas as pd

from ngsgd.cli.entry_point import entry_point
from ngsgd.data.corpus import read_info
from ngsgd.files import write_text
from ngsgd.study.recorded import read
from ngsgd.study.report import Findings, page

with entry_point(snakemake.log[0]):
    study, findings = snakemake.params.study, {}
    for (name, experiment), info in zip(study.experiments.items(), snakemake.input.infos, strict=True):
        tables = {
            table: pd.read_csv(f"results/paper/{name}/{table}.tsv", sep="\t") for table in snakemake.params.tables[name]
        }
        source = read(f"{snakemake.params.root}/{experiment.recorded}").source if experiment.recorded else None
        findings[name] = Findings(experiment, read_info(Path(info).parent), tables, source)
    write_text(snakemake.output[0], page(findings, Path("paper")))
