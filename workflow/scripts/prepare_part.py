from pathlib import Path

from ngsgd.cli.entry_point import entry_point
from ngsgd.data.parts import prepare_part
from ngsgd.training.corpora import open_corpus

with entry_point(snakemake.log[0]):
    prepare_part(
        open_corpus(snakemake.params.settings),
        Path(snakemake.output.info).parent,
        int(snakemake.wildcards.split),
        int(snakemake.wildcards.num),
    )
