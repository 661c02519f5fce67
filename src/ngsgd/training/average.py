"""The end of an iteration: the average of its jobs' models, or the best of them. Imports no torch.

A job whose model is not fit to be averaged is left out, and the iteration's report says why.
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

BLOCK = 1 << 16  # numbers of each model that are summed up at a time
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
    """Makes the next model from those of an iteration's jobs, as their plan's action says, and a report of it.

    An outer step is made where models are averaged; after an iteration of which the best model was taken its momentum
    is 0.

    Args:
        jobs: the jobs' models, in the order of the jobs, without those that are lost.
        before: the model that they started from.
        max_gap: a job is left out whose training log-probability per frame is further than this below the median of
            the others'.
        output: where the next model is to be written.
        report: where the iteration's report (JSON) is to be written.
        lost: for the number of each lost job the reason.
        step: what is made of the average.
        momenta: the files of V_{t-1} and V_t, where the step has a momentum.

    Raises:
        ModelError: a model cannot be read, or is not one of this iteration.
        TrainingError: no job's model is of use.
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
        reasons = _left_out(records, max_gap, damaged)
        used = [i for i, reason in enumerate(reasons) if reason is None]
        if not used:
            saw = "; ".join(f"job {record['job']}: {reason}" for record, reason in zip(records, reasons, strict=True))
            raise TrainingError(
                f"iteration {iteration}: no job made a model of use ({saw}); lower initial_effective_lrate or "
                "max_change_per_sample, or look into the jobs' logs for bad examples"
            )
        if action != AVERAGE:
            used = [max(used, key=lambda i: (records[i]["log_probability"], -i))]
        weights, factor = job_weights(step.weights, [records[i]["frames"] for i in used])
        arrays = average_arrays([jobs[i] for i in used], weights)
        if factor != 1.0:
            arrays = scale_change(before_arrays, arrays, factor)
        # What is not finite in one model is not in the average: each needs to be looked at only then.
        if all(np.isfinite(array).all() for array in arrays.values()):
            break
        found = {i: reason for i in used if (reason := _not_finite(jobs[i]))}
        if not found:
            raise TrainingError(f"iteration {iteration}: the models' average is not finite, though each of them is")
        damaged |= found
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
        if momenta:  # before the model: one that is there has its momentum
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


def _left_out(records: list[dict[str, Any]], max_gap: float, damaged: Mapping[int, str]) -> list[str | None]:
    """For each job why its model is not to be used, or None."""
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


def _not_finite(path: str | os.PathLike[str]) -> str | None:
    """Which array of a model holds a value that is not finite."""
    return next((f"{name} is not finite" for name, a in read_model(path)[0].items() if not np.isfinite(a).all()), None)


def average_arrays(paths: Sequence[str | os.PathLike[str]], weights: Sequence[float] | None = None) -> Arrays:
    """The mean of all arrays (parameters and running statistics) of models of one architecture; see `mean`.

    Each model is read once, and beside the mean there is never more than a block of each in memory.

    Raises:
        ModelError: a model cannot be read, or its arrays are not those of the first.
    """
    with contextlib.ExitStack() as stack:
        return mean([(os.fspath(path), stack.enter_context(open_model(path))) for path in paths], weights)


def mean(models: Sequence[tuple[str, Mapping[str, Rows]]], weights: Sequence[float] | None = None) -> Arrays:
    """The mean of models' arrays, each given with its name, or their sum with weights.

    Sums are taken in double precision in the order of the models, so that the same ones give the same bytes, and block
    by block, of all models at once: a block's sum stays in the processor's cache.

    Raises:
        ModelError: the arrays of one are not those of the first.
    """
    first_name, first = models[0]
    shapes = {key: array.shape for key, array in first.items()}
    for name, arrays in models:
        if {key: array.shape for key, array in arrays.items()} != shapes:
            raise ModelError(f"{name}: its arrays are not those of {first_name}")
    made: Arrays = {}
    for key, shape in shapes.items():
        rows = max(1, BLOCK // max(1, math.prod(shape[1:])))
        mean_array: npt.NDArray[Any] | None = None
        for begin in range(0, shape[0], rows):
            wanted = slice(begin, min(begin + rows, shape[0]))
            block = first[key][wanted]
            total = block.astype(np.float64)
            if weights:
                total *= weights[0]
            for i, (_, arrays) in enumerate(models[1:], start=1):
                other = arrays[key][wanted]
                total += weights[i] * other.astype(np.float64) if weights else other
            if mean_array is None:
                mean_array = made[key] = np.empty(shape, block.dtype)
            mean_array[wanted] = total if weights else total / len(models)
    return made


def _relative_changes(before: Arrays, after: Arrays) -> dict[str, float]:
    """For each component that was there before, |after - before| / |before| over its arrays (0 where that is 0)."""
    squares: dict[str, list[float]] = {}
    for name in sorted(name for name in after if name.startswith("components.")):
        layer = name.split(".")[1]
        if name in before and before[name].shape == after[name].shape:
            old, new = before[name].astype(np.float64), after[name].astype(np.float64)
            change = squares.setdefault(layer, [0.0, 0.0])
            change[0] += float(np.square(new - old).sum())
            change[1] += float(np.square(old).sum())
    return {layer: (c / o) ** 0.5 if o else 0.0 for layer, (c, o) in squares.items()}
