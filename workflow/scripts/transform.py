from pathlib import Path

from ngsgd.cli.entry_point import entry_point
from ngsgd.data.corpus import Subset, read_info
from ngsgd.data.transform import estimate_transform, write_transform
from ngsgd.network.splices import parse_splice_indexes

with entry_point(snakemake.log[0]):
    s = snakemake.params.settings
    corpus = Path(snakemake.input.info).parent
    weight, bias = estimate_transform(
        Subset(corpus, "train"),
        read_info(corpus),
        offsets=parse_splice_indexes(s["splice_indexes"])[0],
        max_frames=s["lda_max_frames"],
        within_class_factor=s["within_class_factor"],
    )
    write_transform(snakemake.output.transform, weight, bias)
