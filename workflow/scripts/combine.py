from pathlib import Path

from ngsgd.cli.entry_point import entry_point
from ngsgd.data.corpus import read_info
from ngsgd.training.combine import combine
from ngsgd.training.run import Run

with entry_point(snakemake.log[0]):
    p = snakemake.params
    s = Run.read(Path(p.settings)).settings
    combine(
        [Path(model) for model in p.models],
        Path(p.valid),
        Path(p.prior),
        s.context(),
        s.threads,
        Path(snakemake.output.model),
        Path(snakemake.output.report),
        Path(p.labels[0]) if p.labels else None,
        read_info(Path(p.corpus).parent).transition_model,
        s.combination_decay,
    )
