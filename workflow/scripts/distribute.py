from pathlib import Path

from ngsgd.cli.entry_point import entry_point
from ngsgd.data.corpus import Subset, read_info
from ngsgd.data.egs import corpus_layout, distribute
from ngsgd.network.splices import context, parse_splice_indexes

with entry_point(snakemake.log[0]):
    s = snakemake.params.settings
    corpus = Path(snakemake.input.info).parent
    distribute(
        Subset(corpus, "train"),
        corpus_layout(corpus, s["frames_per_eg"], s["samples_per_iter"]),
        context(parse_splice_indexes(s["splice_indexes"])),
        int(snakemake.wildcards.split),
        int(snakemake.wildcards.num),
        Path(snakemake.output.distributed),
        read_info(corpus).const_dim,
        s["egs_bits"],
    )
