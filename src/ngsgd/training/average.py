"""End of an iteration: averages its jobs' models, or takes the best one. Imports no torch.

A job whose model is unusable is left out, and the iteration's report gives the reason.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ngsgd.errors import ModelError, TrainingError
from ngsgd.files import write_text
from ngsgd.network.storage import Arrays, Header, Rows, open_model, read_header, read_model, write_model
from ngsgd.training.lost_jobs import LOST
from ngsgd.training.outer_step import (
    OuterStep,
    apply_outer_step,
    job_weights,
    read_momentum,
    scale_change,
    write_momentum,
)
from ngsgd.training.plan import AVERAGE

BLOCK = 1 << 16  # elements of each model that are summed at a time
RECORD = {"iteration", "job", "action", "frames", "log_probability", "max_change_share", "failure"}

AVERAGING = OuterStep()

log = logging.getLogger(__name__)


def end_iteration(
    jobs: Sequence[str | os.PathLike[str]],
    before: str | os.PathLike[str],
    max_gap: float,
    output: str | os.PathLike[str],
    report: str | os.PathLike[str],
    lost: Mapping[int, str] | None = None,
    step: OuterStep = AVERAGING,
    momenta: tuple[Path, Path] | None = None,
) -> None:
    """Writes the next model and the iteration's report.

    The jobs' models are averaged, or the best one is taken, according to the plan's action. The outer step applies only
    where models are averaged; its momentum is 0 after an iteration that took the best model.

    Args:
        jobs: paths of the jobs' models, in the order of the jobs, without lost jobs.
        before: path of the model that the iteration started from.
        max_gap: leaves out a job whose training log-probability per frame is more than this below the median of the
            other jobs.
        output: path of the next model.
        report: path of the iteration's report (JSON).
        lost: job number -> reason, for each lost job.
        step: the outer step, which turns the average into the next model.
        momenta: paths of V_{t-1} and V_t, if the step has a momentum.

    Raises:
        ModelError: a model cannot be read, or does not belong to this iteration.
        TrainingError: no job's model is usable, or the result is not finite.
    """
    headers = [_job_header(path) for path in jobs]
    records: list[dict[str, Any]] = [header["history"]["job"] for header in headers]
    iteration = records[0]["iteration"]
    before_arrays, before_header = read_model(before)
    past = before_header["history"].get("iterations")
    if not isinstance(past, list) or len(past) != iteration:
        raise ModelError(f"{os.fspath(before)}: not the model that iteration {iteration} starts from; delete it")
    for path, header, record in zip(jobs, headers, records, strict=True):
        if record["iteration"] != iteration or header["architecture"] != headers[0]["architecture"]:
            raise ModelError(f"{os.fspath(path)}: not of iteration {iteration}, or of another architecture; delete it")
        if header["history"].get("iterations", past) != past:
            raise ModelError(
                f"{os.fspath(path)}: trained from another model than {os.fspath(before)}; delete it and run again"
            )
    action = records[0]["action"]
    damaged: dict[int, str] = {}
    while True:
        reasons = _exclusion_reasons(records, max_gap, damaged)
        used = [i for i, reason in enumerate(reasons) if reason is None]
        if not used:
            details = "; ".join(f"job {rec['job']}: {reason}" for rec, reason in zip(records, reasons, strict=True))
            raise TrainingError(
                f"iteration {iteration}: no job produced a usable model ({details}); lower initial_effective_lrate or "
                "max_change_per_sample, or look for bad examples in the jobs' logs"
            )
        if action != AVERAGE:
            used = [max(used, key=lambda i: (records[i]["log_probability"], -i))]
        weights, factor = job_weights(step.weights, [records[i]["frames"] for i in used])
        arrays = average_arrays([jobs[i] for i in used], weights)
        if factor != 1.0:
            arrays = scale_change(before_arrays, arrays, factor)
        # A non-finite value in one model makes the average non-finite, so the models are checked only in that case.
        if all(np.isfinite(array).all() for array in arrays.values()):
            break
        non_finite = {i: reason for i in used if (reason := _non_finite_array(jobs[i]))}
        if not non_finite:
            raise TrainingError(f"iteration {iteration}: the models' average is not finite, though each of them is")
        damaged |= non_finite
    for record, reason in zip(records, reasons, strict=True):
        if reason:
            log.warning("iteration %d: job %d is left out: %s", iteration, record["job"], reason)
    entry = {
        "iteration": iteration,
        "action": action,
        "jobs": [records[i]["job"] for i in used],
        "frames": sum(records[i]["frames"] for i in used),
    }
    if lost:
        entry[LOST] = sorted(lost)
    history = {"iterations": [*past, entry]}
    header = Header(format=headers[0]["format"], architecture=headers[0]["architecture"], history=history)
    if action == AVERAGE and not step.is_average:
        velocity: Arrays = {}
        if momenta and past and past[-1]["action"] == AVERAGE:
            velocity = read_momentum(momenta[0], before, before_header)
        arrays, velocity = apply_outer_step(before_arrays, arrays, velocity, step)
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise TrainingError(f"iteration {iteration}: the model is not finite; lower outer_lrate or outer_momentum")
        if momenta:  # written before the model, so that every existing model has its momentum
            write_momentum(momenta[1], velocity, header)
    summary = entry | {
        "relative_change": _relative_changes(before_arrays, arrays),
        "records": [record | {"left_out": reason} for record, reason in zip(records, reasons, strict=True)],
        LOST: {str(job): reason for job, reason in sorted((lost or {}).items())},
    }
    write_text(report, json.dumps(summary, indent=1) + "\n")
    write_model(output, arrays, header)


def _job_header(path: str | os.PathLike[str]) -> Header:
    header = read_header(path)
    record = header["history"].get("job")
    if not isinstance(record, dict) or not record.keys() >= RECORD:
        raise ModelError(f"{os.fspath(path)}: not the model of a training job; delete it and run again")
    return header


def _exclusion_reasons(records: list[dict[str, Any]], max_gap: float, damaged: Mapping[int, str]) -> list[str | None]:
    """Returns for each job the reason to leave its model out, or None."""
    reasons: list[str | None] = [record["failure"] or damaged.get(i) for i, record in enumerate(records)]
    healthy = [i for i, reason in enumerate(reasons) if reason is None]
    for i in healthy:
        others = [records[k]["log_probability"] for k in healthy if k != i]
        if others and records[i]["log_probability"] < statistics.median(others) - max_gap:
            reasons[i] = (
                f"its training log-probability {records[i]['log_probability']:.3f} is more than {max_gap:g} below "
                f"the others' {statistics.median(others):.3f}"
            )
    return reasons


def _non_finite_array(path: str | os.PathLike[str]) -> str | None:
    """Names the first array of a model that is not finite; None if all are."""
    return next((f"{name} is not finite" for name, a in read_model(path)[0].items() if not np.isfinite(a).all()), None)


def average_arrays(paths: Sequence[str | os.PathLike[str]], weights: Sequence[float] | None = None) -> Arrays:
    """Returns the mean of all arrays (parameters and running statistics) of several models; see `mean`.

    Each model is read once, one block at a time; only the mean is held in memory.

    Raises:
        ModelError: a model cannot be read, or its arrays differ in name or shape from the first model's.
    """
    with contextlib.ExitStack() as stack:
        return mean([(os.fspath(path), stack.enter_context(open_model(path))) for path in paths], weights)


def mean(models: Sequence[tuple[str, Mapping[str, Rows]]], weights: Sequence[float] | None = None) -> Arrays:
    """Returns the mean of the models' arrays, or with weights their weighted sum.

    Sums are taken in double precision in the order of the models, so that the same models give the same bytes, and
    block by block over all models, so that a block's sum stays in the processor's cache.

    Args:
        models: name and arrays of each model.
        weights: of the models; None for the mean.

    Raises:
        ModelError: a model's arrays differ in name or shape from the first model's.
    """
    first_name, first = models[0]
    shapes = {key: array.shape for key, array in first.items()}
    for name, arrays in models:
        if {key: array.shape for key, array in arrays.items()} != shapes:
            raise ModelError(f"{name}: its arrays are not those of {first_name}")
    result: Arrays = {}
    for key, shape in shapes.items():
        rows = max(1, BLOCK // max(1, math.prod(shape[1:])))
        mean_array: npt.NDArray[Any] | None = None
        for begin in range(0, shape[0], rows):
            span = slice(begin, min(begin + rows, shape[0]))
            block = first[key][span]
            total = block.astype(np.float64)
            if weights:
                total *= weights[0]
            for i, (_, arrays) in enumerate(models[1:], start=1):
                other = arrays[key][span]
                total += weights[i] * other.astype(np.float64) if weights else other
            if mean_array is None:
                mean_array = result[key] = np.empty(shape, block.dtype)
            mean_array[span] = total if weights else total / len(models)
    return result


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
