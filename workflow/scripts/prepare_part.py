from pathlib import Path

from ngsgd.cli.entry_point import entry_point
from ngsgd.data.corpora import check_unchanged, open_corpus
from ngsgd.data.parts import prepare_part

with entry_point(snakemake.log[0]):
    prepare_part(
        open_corpus(snakemake.params.settings),
        Path(snakemake.output.info).parent,
        int(snakemake.wildcards.split),
        int(snakemake.wildcards.num),
    )
    check_unchanged(snakemake.params.settings, snakemake.wildcards.data)
