from pathlib import Path

from ngsgd.data.corpus import Subset
from ngsgd.data.egs import sample_frames
from ngsgd.faces.program import program
from ngsgd.files import derived_seed
from ngsgd.network.splices import context, parse_splice_indexes

with program(snakemake.log[0]):
    s = snakemake.params.settings
    purpose = snakemake.wildcards.subset
    sample_frames(
        # The frames for the priors are of the training subset, too, but others.
        Subset(Path(snakemake.input.info).parent, "valid" if purpose == "valid" else "train"),
        int(snakemake.wildcards.frames),
        context(parse_splice_indexes(s["splice_indexes"])),
        derived_seed(s["seed"], "sample", purpose),
        Path(snakemake.output.examples),
    )
