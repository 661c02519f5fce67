from pathlib import Path

from ngsgd.cli.entry_point import entry_point
from ngsgd.data.corpus import Subset
from ngsgd.data.egs import corpus_layout, shuffle

with entry_point(snakemake.log[0]):
    s = snakemake.params.settings
    corpus = Path(snakemake.input.info).parent
    shuffle(
        Subset(corpus, "train"),
        corpus_layout(corpus, s["frames_per_eg"], s["samples_per_iter"]),
        int(snakemake.wildcards.archive),
        s["seed"],
        [Path(path) for path in snakemake.input.distributed],
        Path(snakemake.output.archive),
    )
