"""End of an iteration: averages its jobs' models, or takes the best one. Imports no torch.

A job whose model is unusable is left out, and the iteration's report gives the reason.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ngsgd.errors import ModelError, TrainingError
from ngsgd.files import write_text
from ngsgd.network.storage import Arrays, Header, read_header, read_model, write_model
from ngsgd.training.averaging_rules import AveragingRule, JobModels
from ngsgd.training.job_record import JobRecord
from ngsgd.training.lost_jobs import LOST
from ngsgd.training.outer_step import OuterStep, read_momentum, write_momentum
from ngsgd.training.plan import AVERAGE

PLAIN_AVERAGING = OuterStep()

log = logging.getLogger(__name__)


def end_iteration(
    jobs: Sequence[str | os.PathLike[str]],
    before: str | os.PathLike[str],
    max_gap: float,
    output: str | os.PathLike[str],
    report: str | os.PathLike[str],
    lost: Mapping[int, str] | None = None,
    rule: AveragingRule = PLAIN_AVERAGING,
    momenta: tuple[Path, Path] | None = None,
) -> None:
    """Writes the next model and the iteration's report.

    The jobs' models are averaged, or the best one is taken, according to the plan's action. The averaging rule applies
    only where models are averaged; its state is empty after an iteration that took the best model.

    Args:
        jobs: paths of the jobs' models, in the order of the jobs, without lost jobs.
        before: path of the model that the iteration started from.
        max_gap: leaves out a job whose training log-probability per frame is more than this below the median of the
            other jobs.
        output: path of the next model.
        report: path of the iteration's report (JSON).
        lost: job number -> reason, for each lost job.
        rule: the averaging rule.
        momenta: paths of the rule's state before and after the iteration, if it has one.

    Raises:
        ModelError: a model cannot be read, or does not belong to this iteration.
        TrainingError: no job's model is usable, or the result is not finite.
    """
    headers = [read_header(path) for path in jobs]
    entries: list[dict[str, Any]] = [header["history"].get("job", {}) for header in headers]
    records = [JobRecord.from_history(entry, path) for entry, path in zip(entries, jobs, strict=True)]
    iteration, action = entries[0]["iteration"], entries[0]["action"]
    before_arrays, before_header = read_model(before)
    past = before_header["history"].get("iterations")
    if not isinstance(past, list) or len(past) != iteration:
        raise ModelError(f"{os.fspath(before)}: not the model that iteration {iteration} starts from; delete it")
    for path, header, job in zip(jobs, headers, entries, strict=True):
        if job["iteration"] != iteration or header["architecture"] != headers[0]["architecture"]:
            raise ModelError(f"{os.fspath(path)}: not of iteration {iteration}, or of another architecture; delete it")
        if header["history"].get("iterations", past) != past:
            raise ModelError(
                f"{os.fspath(path)}: trained from another model than {os.fspath(before)}; delete it and run again"
            )
    state: Arrays = {}
    if momenta and past and action == past[-1]["action"] == AVERAGE:
        state = read_momentum(momenta[0], before, before_header)
    damaged: dict[int, str] = {}
    while True:
        reasons = _exclusion_reasons(records, max_gap, damaged)
        used = [i for i, reason in enumerate(reasons) if reason is None]
        if not used:
            details = "; ".join(f"job {job['job']}: {reason}" for job, reason in zip(entries, reasons, strict=True))
            raise TrainingError(
                f"iteration {iteration}: no job produced a usable model ({details}); lower initial_effective_lrate or "
                "max_change_per_sample, or look for bad examples in the jobs' logs"
            )
        if action == AVERAGE:
            models = JobModels([jobs[i] for i in used], [records[i].frames for i in used])
            arrays, next_state = rule.next_model(before_arrays, models, state)
        else:
            used = [max(used, key=lambda i: (records[i].log_probability, -i))]
            arrays, next_state = JobModels([jobs[used[0]]], [records[used[0]].frames]).mean(), {}
        # A non-finite value in one model makes the average non-finite, so the models are checked only in that case.
        if all(np.isfinite(array).all() for array in arrays.values()):
            break
        non_finite = {i: reason for i in used if (reason := _non_finite_array(jobs[i]))}
        if not non_finite:
            raise TrainingError(
                f"iteration {iteration}: the models' average is not finite, though each of them is; {rule.advice}"
            )
        damaged |= non_finite
    for job, reason in zip(entries, reasons, strict=True):
        if reason:
            log.warning("iteration %d: job %d is left out: %s", iteration, job["job"], reason)
    entry = {
        "iteration": iteration,
        "action": action,
        "jobs": [entries[i]["job"] for i in used],
        "frames": sum(records[i].frames for i in used),
    }
    if lost:
        entry[LOST] = sorted(lost)
    history = {"iterations": [*past, entry]}
    header = Header(format=headers[0]["format"], architecture=headers[0]["architecture"], history=history)
    if momenta and action == AVERAGE:  # written before the model, so that every existing model has its state
        write_momentum(momenta[1], next_state, header)
    summary = entry | {
        "relative_change": _relative_changes(before_arrays, arrays),
        "records": [job | {"left_out": reason} for job, reason in zip(entries, reasons, strict=True)],
        LOST: {str(job): reason for job, reason in sorted((lost or {}).items())},
    }
    write_text(report, json.dumps(summary, indent=1) + "\n")
    write_model(output, arrays, header)


def _exclusion_reasons(records: list[JobRecord], max_gap: float, damaged: Mapping[int, str]) -> list[str | None]:
    """Returns for each job the reason to leave its model out, or None."""
    reasons: list[str | None] = [record.failure or damaged.get(i) for i, record in enumerate(records)]
    healthy = [i for i, reason in enumerate(reasons) if reason is None]
    for i in healthy:
        others = [records[k].log_probability for k in healthy if k != i]
        if others and records[i].log_probability < statistics.median(others) - max_gap:
            reasons[i] = (
                f"its training log-probability {records[i].log_probability:.3f} is more than {max_gap:g} below "
                f"the others' {statistics.median(others):.3f}"
            )
    return reasons


def _non_finite_array(path: str | os.PathLike[str]) -> str | None:
    """Names the first array of a model that is not finite; None if all are."""
    return next((f"{name} is not finite" for name, a in read_model(path)[0].items() if not np.isfinite(a).all()), None)


def _relative_changes(before: Arrays, after: Arrays) -> dict[str, float]:
    """Returns |after - before| / |before| for each component of both models, over its arrays; 0 if |before| is 0."""
    squares: dict[str, list[float]] = {}
    for name in sorted(name for name in after if name.startswith("components.")):
        layer = name.split(".")[1]
        if name in before and before[name].shape == after[name].shape:
            old, new = before[name].astype(np.float64), after[name].astype(np.float64)
            change = squares.setdefault(layer, [0.0, 0.0])
            change[0] += float(np.square(new - old).sum())
            change[1] += float(np.square(old).sum())
    return {layer: (c / o) ** 0.5 if o else 0.0 for layer, (c, o) in squares.items()}
