"""How a run stands, from its files alone: on any machine that sees them, whether or not Snakemake is at work."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ngsgd.locks import lock_holder
from ngsgd.training.lost_jobs import read_lost_jobs
from ngsgd.training.plan import Job, read_plan
from ngsgd.training.progress import Progress, read_progress
from ngsgd.training.run import Run

RECENT = 20  # iterations that the pace is told from
PERIOD = 5.0  # seconds between two looks of `follow`
SILENT = 60.0  # seconds without a word after which a job that says that it runs may not


def describe(run: Run, now: float) -> str:
    """Some lines about a run: its iteration and that one's jobs, the latest scores, the pace, and the expected end.

    Args:
        run: the run.
        now: seconds since the epoch.

    Raises:
        DataError: the plan or the ledger cannot be read.
    """
    plan = read_plan(run.plan)
    num_iters = plan[-1].iteration + 1
    x = max((int(path.stem) for path in run.model(0).parent.glob("[0-9]*.safetensors")), default=0)
    at_work = lock_holder(run.folder.parent)
    return "\n".join(
        [
            f"{run.folder.name}: {_stage(run, x, num_iters)}",
            f"  {f'{at_work} is at work on it' if at_work else 'no Snakemake is at work on it'}",
            *(_jobs(run, [job for job in plan if job.iteration == x], now) if x < num_iters else []),
            *_scores(run, x),
            *_pace(run, x, num_iters),
            *_lost_jobs(run),
        ]
    )


def follow(run: Run) -> None:
    """Prints how a run stands every few seconds, until it has its final model.

    Raises:
        DataError: the plan or the ledger cannot be read.
    """
    while True:
        clear = "\033[H\033[J" if sys.stdout.isatty() else ""
        print(clear + describe(run, time.time()), flush=True)
        if run.final.exists():
            return
        time.sleep(PERIOD)


def _stage(run: Run, x: int, num_iters: int) -> str:
    if run.evaluation.exists():
        scores = json.loads(run.evaluation.read_text(encoding="utf-8"))
        unit = next((unit for unit in ("word", "phone") if f"{unit}_error_rate" in scores), None)
        words = f", {unit} error rate {scores[f'{unit}_error_rate']:.2%}" if unit else ""
        return (
            f"finished; on the test set log-probability {scores['log_probability']:.3f} per frame, "
            f"accuracy {scores['accuracy']:.1%}{words}"
        )
    if run.final.exists():
        return "the final model is there, its evaluation is not"
    return (
        f"iteration {x} of 0 – {num_iters - 1}" if x < num_iters else "all iterations are done, the final model is not"
    )


def _jobs(run: Run, jobs: list[Job], now: float) -> Iterator[str]:
    for job in jobs:
        told = read_progress(run.progress(job.iteration, job.job))
        yield f"  job {job.job}: {_job(told, run.job(job.iteration, job.job), now)}"


def _job(told: Progress | None, model: Path, now: float) -> str:
    if told is None:
        return "done" if model.exists() else "waiting"
    again = f", attempt {told.attempt}" if told.attempt > 1 else ""
    where = f" on {told.host}{f' (job {told.number})' if told.number else ''}" if told.host else ""
    if told.state == "failed":
        return f"failed{where}{again}: {told.reason}"
    pace = f", {told.frames / told.seconds:,.0f} frames/s" if told.frames and told.seconds else ""
    if told.log_probability is not None:
        pace += f", log-probability {told.log_probability:.3f} per frame"
    if told.state == "done":
        return f"done in {told.seconds:.0f} s{pace}{again}"
    silent = f", silent for {now - told.updated:.0f} s" if now - told.updated > SILENT else ""
    share = f" {told.frames / told.of:.0%}" if told.of else ""
    return f"running{share}{where}{pace}{again}{silent}"


def _scores(run: Run, x: int) -> Iterator[str]:
    for y in range(x, max(-1, x - RECENT), -1):
        if run.diagnostics(y).exists():
            scores = json.loads(run.diagnostics(y).read_text(encoding="utf-8"))
            yield f"  model {y}: " + "; ".join(
                f"{subset} log-probability {scores[subset]['log_probability']:.3f}, "
                f"accuracy {scores[subset]['accuracy']:.1%}"
                for subset in ("valid", "train")
            )
            return


def _pace(run: Run, x: int, num_iters: int) -> Iterator[str]:
    """How fast the last iterations were, retries of their jobs, and when the last one is to be expected."""
    ends: list[float] = []
    frames, retried = [], 0
    for y in range(max(0, x - RECENT), x):
        averaging = read_progress(run.progress(y, 0))
        if averaging is not None and run.report(y + 1).exists():
            ends.append(averaging.updated)
            records: list[dict[str, Any]] = json.loads(run.report(y + 1).read_text(encoding="utf-8"))["records"]
            frames.append(sum(record["frames"] for record in records))
            told = (read_progress(run.progress(y, record["job"])) for record in records)
            retried += sum(progress.attempt > 1 for progress in told if progress is not None)
    if retried:
        yield f"  {retried} jobs of the last {len(ends)} iterations were tried again"
    seconds = ends[-1] - ends[0] if len(ends) > 1 else 0.0
    if seconds > 0.0:
        each = seconds / (len(ends) - 1)
        line = f"  {sum(frames[1:]) / seconds:,.0f} frames/s, {each:.1f} s an iteration"
        if x < num_iters:
            last = time.strftime("%Y-%m-%d %H:%M", time.localtime(ends[-1] + each * (num_iters - x)))
            line += f"; {num_iters - x} are to come, the last one ends at this pace at {last}"
        yield line


def _lost_jobs(run: Run) -> Iterator[str]:
    lost_jobs = read_lost_jobs(run.ledger)
    if lost_jobs:
        last = lost_jobs[-1]
        yield (
            f"  {len(lost_jobs)} jobs were lost, the last one job {last.job} of iteration {last.iteration}: "
            f"{last.reason} ({run.ledger})"
        )
