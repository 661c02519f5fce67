from pathlib import Path

from ngsgd.cli.entry_point import entry_point
from ngsgd.data.parts import assemble

with entry_point(snakemake.log[0]):
    parts = [Path(info).parent for info in snakemake.input.infos]
    p = snakemake.params
    assemble(parts, Path(snakemake.output.info).parent, p.max_bad_share, p.max_unaligned_share)
