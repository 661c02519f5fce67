"""The plan: all jobs of a run, known before the first one starts.

Source: ``steps/nnet2/train_multisplice_accel2.sh`` of Kaldi.
"""

from __future__ import annotations

import bisect
import csv
import math
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ngsgd.data.egs import Layout
from ngsgd.errors import ConfigError, DataError
from ngsgd.files import derived_seed
from ngsgd.training.lrate_schedules import SCHEDULES
from ngsgd.training.settings import Settings

AVERAGE = "average"  # the iteration ends with the average of its jobs' models
BEST = "best"  # it ends with the model of best training log-probability, since averaging does not help yet
INSERT = "insert+best"  # the jobs insert a hidden layer before they train, and the best model is taken


class Job(NamedTuple):
    """A row of ``plan.tsv``: one training job.

    Attributes:
        iteration: from 0; the job starts from model ``iteration``.
        job: from 1, within the iteration.
        archive: from 0.
        frame: label position in the archive's examples, from 0.
        learning_rate: per sample; the number of jobs times the effective learning rate.
        minibatch_size: in examples.
        threads: number of threads; the job's sums depend on it.
        seed: of the order of the examples.
        action: of the iteration: `AVERAGE`, `BEST` or `INSERT`.
        alignment: labels to train on: 0 for those of the data, k for those of the k-th realignment.
    """

    iteration: int
    job: int
    archive: int
    frame: int
    learning_rate: float
    minibatch_size: int
    threads: int
    seed: int
    action: str
    alignment: int = 0


def make_plan(layout: Layout, s: Settings) -> list[Job]:
    """Returns all jobs of a run, in order.

    ``extra_epochs`` appends jobs at the final learning rate and number of jobs; the jobs before them do not change.

    Raises:
        ConfigError: there are fewer expanded archives than jobs, no iteration, or too few iterations to insert all
            layers.
    """
    expanded = layout.num_archives * layout.frames_per_eg
    if s.num_jobs_final > expanded:
        raise ConfigError(
            f"num_jobs_final = {s.num_jobs_final} jobs, but only {expanded} expanded archives ({layout.num_archives} "
            f"archives x {layout.frames_per_eg} frames_per_eg): lower num_jobs_final or samples_per_iter"
        )
    to_process = s.num_epochs * expanded
    num_iters = math.floor(2 * to_process / (s.num_jobs_initial + s.num_jobs_final))
    # A trained initial model has all its layers, and averaging helps from the first iteration.
    last_insertion = -1 if s.initial_model else (s.num_hidden_layers - 1) * s.add_layers_period
    if last_insertion >= max(num_iters, 1):
        raise ConfigError(
            f"{num_iters} iterations are too few to insert {s.num_hidden_layers} hidden layers, the last one before "
            f"iteration {last_insertion}: raise num_epochs, or lower samples_per_iter, num_hidden_layers or "
            "add_layers_period"
        )
    if num_iters == 0:
        raise ConfigError("not a single iteration: raise num_epochs, or lower num_jobs_initial and num_jobs_final")
    realigned = realignment_iterations(s, num_iters)
    schedule = SCHEDULES[s.lrate_schedule]
    plan: list[Job] = []
    for x in range(num_iters):
        num_jobs = math.floor(0.5 + s.num_jobs_initial + (s.num_jobs_final - s.num_jobs_initial) * x / num_iters)
        processed = len(plan)
        rates = s.initial_effective_lrate, s.final_effective_lrate
        effective = schedule(*rates, processed, to_process) if x < num_iters - 1 else s.final_effective_lrate
        inserts = 0 < x <= last_insertion and x % s.add_layers_period == 0
        unsettled = (x == 0 and not s.initial_model) or inserts
        for n in range(1, num_jobs + 1):
            k = processed + n - 1
            plan.append(
                Job(
                    iteration=x,
                    job=n,
                    archive=k % layout.num_archives,
                    frame=(k // layout.num_archives) % layout.frames_per_eg,
                    learning_rate=num_jobs * effective,
                    minibatch_size=max(1, s.minibatch_size // 2) if unsettled else s.minibatch_size,
                    threads=s.threads,
                    seed=derived_seed(s.seed, x, n),
                    action=INSERT if inserts else BEST if unsettled else AVERAGE,
                    alignment=bisect.bisect_right(realigned, x),
                )
            )
    extra_iters = math.floor(s.extra_epochs * expanded / s.num_jobs_final)
    for x in range(num_iters, num_iters + extra_iters):
        processed = len(plan)
        for n in range(1, s.num_jobs_final + 1):
            k = processed + n - 1
            plan.append(
                plan[-1]._replace(
                    iteration=x,
                    job=n,
                    archive=k % layout.num_archives,
                    frame=(k // layout.num_archives) % layout.frames_per_eg,
                    learning_rate=s.num_jobs_final * s.final_effective_lrate,
                    minibatch_size=s.minibatch_size,
                    action=AVERAGE,
                    seed=derived_seed(s.seed, x, n),
                )
            )
    return plan


def realignment_iterations(s: Settings, num_iters: int) -> list[int]:
    """Returns the iterations before which the examples are realigned, one for each of ``realign_times``.

    Raises:
        ConfigError: a realignment does not fall between two iterations, or two fall between the same ones.
    """
    first, last = s.num_jobs_initial, s.num_jobs_final
    iterations = []
    for time in s.realign_times:
        share = time
        if last != first:  # the number of jobs grows linearly, the data processed as its square
            share = (math.sqrt((1.0 - time) * first**2 + time * last**2) - first) / (last - first)
        iterations.append(math.floor(0.5 + num_iters * share))
    for time, x, before in zip(s.realign_times, iterations, [0, *iterations], strict=False):
        if x <= before or x >= num_iters:
            raise ConfigError(
                f"realign_times: {time} of the data is processed before iteration {x} of {num_iters}: each "
                "realignment must fall between two iterations of its own; raise num_epochs or lower samples_per_iter"
            )
    return iterations


def read_plan(path: str | os.PathLike[str]) -> list[Job]:
    """Reads a ``plan.tsv``.

    Raises:
        DataError: the file is missing or malformed.
    """
    return list(_rows(path))


def iteration_jobs(path: str | os.PathLike[str], iteration: int) -> list[Job]:
    """Reads one iteration's rows of a ``plan.tsv``.

    Raises:
        DataError: the file is missing or malformed, or has no such iteration.
    """
    jobs = list(_rows(path, iteration))
    if not jobs:
        raise DataError(f"{os.fspath(path)}: no iteration {iteration}")
    return jobs


def _rows(path: str | os.PathLike[str], iteration: int | None = None) -> Iterator[Job]:
    """Yields the rows, of one iteration if given. Other rows are not parsed, since plans are long."""
    try:
        with open(path, encoding="utf-8", newline="") as f:
            rows = csv.reader(f, delimiter="\t")
            if tuple(next(rows, ())) != Job._fields:
                raise ValueError("the columns are not those of a plan")
            for row in rows:
                if iteration is None or row[0] == str(iteration):
                    yield Job(*(convert(cell) for convert, cell in zip(_COLUMNS, row, strict=True)))
    except (OSError, IndexError, ValueError, csv.Error) as e:
        raise DataError(f"{os.fspath(path)}: not a plan ({e}); delete it and run again") from None


_COLUMNS: tuple[Callable[[str], Any], ...] = (int, int, int, int, float, int, int, int, str, int)


def models_to_combine(plan: list[Job], layout: Layout, s: Settings) -> list[int]:
    """Returns the numbers of the last models, which are combined into the final model.

    Their number is that of the last epoch's iterations but at least ``max_models_combine``, limited to two thirds of
    the iterations in the second half of the data, and to models with all layers.
    """
    num_iters = plan[-1].iteration + 1
    expanded = layout.num_archives * layout.frames_per_eg
    half = plan[min(len(plan) - 1, math.ceil((s.num_epochs + s.extra_epochs) * expanded / 2))].iteration
    wanted = max(s.max_models_combine, expanded // s.num_jobs_final)
    allowed = 2 * (num_iters - half - 1) // 3
    settled = num_iters - max((job.iteration for job in plan if job.action == INSERT), default=-1) - 1
    count = max(1, min(wanted, allowed, settled))
    return list(range(num_iters - count + 1, num_iters + 1))
