from pathlib import Path

from ngsgd.data.parts import assemble
from ngsgd.faces.program import program

with program(snakemake.log[0]):
    parts = [Path(info).parent for info in snakemake.input.infos]
    assemble(parts, Path(snakemake.output.info).parent, snakemake.params.max_bad_share)
