"""Pruning: removes a run's models that are not to be kept, once nothing needs them any more."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ngsgd.files import write_text
from ngsgd.training.call_settings import ModelRetention
from ngsgd.training.plan import Job, models_to_combine
from ngsgd.training.run import Run


def prune(
    run: Run, plan: Sequence[Job], retention: ModelRetention, needed: Collection[int] = (), *, idle: bool = False
) -> None:
    """Removes the models that are not to be kept, each only when everything made from it exists.

    Args:
        run: the run.
        plan: of the run.
        retention: rule for the models to keep.
        needed: numbers of models that must stay for now.
        idle: whether no job is running. If jobs are running, a model without a successor stays, since it may have been
            made again to make that successor.

    Raises:
        DataError: the corpus cannot be read.
        OSError: a model cannot be removed.
    """
    if retention.all:
        return
    existing = run.existing_models()
    for iteration, job in run.existing_jobs():
        if iteration + 1 in existing:
            run.job_file(iteration, job).unlink(missing_ok=True)
    if idle:  # a killed call may have left a momentum without its model
        for x in run.existing_momenta() - existing:
            run.momentum_file(x).unlink(missing_ok=True)
    newest = min(max(existing, default=0), plan[-1].iteration + 1)  # the run may have been longer before
    still_needed = set(needed)
    if not run.final_model_file.exists():
        still_needed.update(models_to_combine(list(plan), run.layout(), run.settings))
    aligning = {job.alignment: job.iteration for job in reversed(plan) if job.alignment}
    still_needed.update(x for alignment, x in aligning.items() if not run.alignment_model_file(alignment).exists())
    for x in sorted(existing - still_needed):
        if (
            not retention.keeps(x, newest)
            and (idle or x + 1 in existing)
            and x < newest
            and run.diagnostics_file(x).exists()
        ):
            # This is written before the first removal: once it exists, models are no longer targets themselves.
            if not run.pruned_marker.exists():
                write_text(run.pruned_marker, "Models have been removed here, as the configuration says.\n")
            run.model_file(x).unlink(missing_ok=True)
            run.momentum_file(x).unlink(missing_ok=True)
