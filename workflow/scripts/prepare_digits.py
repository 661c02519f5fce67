from pathlib import Path

from ngsgd.cli.entry_point import entry_point
from ngsgd.data.digits import default_file, prepare

with entry_point(snakemake.log[0]):
    s = snakemake.params.settings
    prepare(
        Path(snakemake.output.info).parent,
        Path(s["digits_file"]) if s["digits_file"] else default_file(),
        states_per_word=s["states_per_word"],
        num_valid=s["num_valid_utterances"],
        num_test=s["num_test_utterances"],
        max_bad_share=s["max_bad_utterance_share"],
    )
