from pathlib import Path

from ngsgd.data.corpus import Subset
from ngsgd.data.egs import corpus_layout, shuffle
from ngsgd.faces.program import program

with program(snakemake.log[0]):
    s = snakemake.params.settings
    corpus = Path(snakemake.input.info).parent
    shuffle(
        Subset(corpus, "train"),
        corpus_layout(corpus, s["frames_per_eg"], s["samples_per_iter"]),
        int(snakemake.wildcards.archive),
        s["seed"],
        [Path(path) for path in snakemake.input.dealt],
        Path(snakemake.output.archive),
    )
