from pathlib import Path

from ngsgd.data.parts import prepare_part
from ngsgd.faces.program import program
from ngsgd.procedure.corpora import open_corpus

with program(snakemake.log[0]):
    prepare_part(
        open_corpus(snakemake.params.settings),
        Path(snakemake.output.info).parent,
        int(snakemake.wildcards.split),
        int(snakemake.wildcards.num),
    )
