from pathlib import Path

from ngsgd.cli.entry_point import entry_point
from ngsgd.training.evaluate import evaluate
from ngsgd.training.run import Run

with entry_point(snakemake.log[0]):
    p = snakemake.params
    run = Run.read(Path(p.settings))
    words = [Path(path) for path in snakemake.input.words]
    evaluate(run.settings, Path(p.model), Path(p.corpus).parent, words, Path(snakemake.output.scores))
