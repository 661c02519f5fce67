"""Which of a run's models are kept, and the removal of the others as soon as nothing needs them any more."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from ngsgd.files import write_text
from ngsgd.training.execution import ModelRetention
from ngsgd.training.plan import Job, models_to_combine
from ngsgd.training.run import Run


def prune(
    run: Run, plan: Sequence[Job], keeping: ModelRetention, needed: Collection[int] = (), *, idle: bool = False
) -> None:
    """Removes models that are not kept, each only when all that is made from it is there.

    Args:
        run: the run.
        plan: of the run.
        keeping: what is kept.
        needed: numbers of models that stay for now.
        idle: whether nothing is being made. Else a model whose successor is missing may have been made again for that.

    Raises:
        DataError: the corpus cannot be read.
        OSError: a model cannot be removed.
    """
    if keeping.all:
        return
    made = {int(path.stem) for path in _files(run.model(0).parent)}
    for path in _files(run.job(0, 1).parent):
        if int(path.name.split(".")[0]) + 1 in made:
            path.unlink(missing_ok=True)
    if idle:  # what a call left that was killed between the two
        for path in _files(run.momentum(0).parent):
            if int(path.stem) not in made:
                path.unlink(missing_ok=True)
    newest = min(max(made, default=0), plan[-1].iteration + 1)  # a run may have been longer
    awaited = set(needed)
    if not run.final.exists():
        awaited.update(models_to_combine(list(plan), run.layout(), run.settings))
    aligning = {job.alignment: job.iteration for job in reversed(plan) if job.alignment}
    awaited.update(x for alignment, x in aligning.items() if not run.alignment_model(alignment).exists())
    for x in sorted(made - awaited):
        if not keeping.keeps(x, newest) and (idle or x + 1 in made) and x < newest and run.diagnostics(x).exists():
            # Before it is gone: from then on nobody asks for models for their own sake.
            if not run.pruned.exists():
                write_text(run.pruned, "Models have been removed here, as the configuration says.\n")
            run.model(x).unlink(missing_ok=True)
            run.momentum(x).unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    """The models in a folder, but for those being written."""
    return list(folder.glob("[0-9]*.safetensors")) if folder.exists() else []
