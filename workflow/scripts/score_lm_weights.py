from pathlib import Path

from ngsgd.cli.entry_point import entry_point
from ngsgd.training.decoding import best_point, read_transcripts, score_points, write_alignments, write_scores
from ngsgd.training.run import Run

with entry_point(snakemake.log[0]):
    settings = Run.read(Path(snakemake.params.settings)).settings
    words = [Path(path) for path in snakemake.input.words]
    transcripts = read_transcripts(settings, Path(snakemake.params.corpus).parent, words)
    rows = score_points(settings, transcripts)
    write_scores(rows, Path(snakemake.output.table))
    tables = Path(snakemake.output.per_utterance), Path(snakemake.output.per_speaker)
    write_alignments(transcripts["test"], best_point(rows), *tables)
