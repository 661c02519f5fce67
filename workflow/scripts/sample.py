from pathlib import Path

from ngsgd.cli.entry_point import entry_point
from ngsgd.data.corpus import Subset, read_info
from ngsgd.data.egs import sample_frames
from ngsgd.files import derived_seed
from ngsgd.network.splices import context, parse_splice_indexes

with entry_point(snakemake.log[0]):
    s = snakemake.params.settings
    purpose = snakemake.wildcards.subset
    corpus = Path(snakemake.input.info).parent
    sample_frames(
        # Frames for the priors are training frames, too; the purpose in the seed selects different ones.
        Subset(corpus, "valid" if purpose == "valid" else "train"),
        int(snakemake.wildcards.frames),
        context(parse_splice_indexes(s["splice_indexes"])),
        derived_seed(s["seed"], "sample", purpose),
        Path(snakemake.output.examples),
        read_info(corpus).const_dim,
    )
