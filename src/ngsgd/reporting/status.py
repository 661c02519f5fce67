"""Reports the state of a run from its files, on any machine that can read them and without a running Snakemake."""

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

RECENT = 20  # number of iterations from which the speed is computed
PERIOD = 5.0  # seconds between two reports of `follow`
SILENT = 60.0  # seconds without an update after which a "running" job may be dead


def describe(run: Run, now: float) -> str:
    """Describes a run in a few lines: current iteration and its jobs, latest scores, speed and expected end.

    Args:
        run: the run.
        now: current time, seconds since the epoch.

    Raises:
        DataError: the plan or the ledger cannot be read.
    """
    plan = read_plan(run.plan_file)
    num_iters = plan[-1].iteration + 1
    x = max(run.existing_models(), default=0)
    scheduler = lock_holder(run.folder.parent)
    return "\n".join(
        [
            f"{run.folder.name}: {_stage(run, x, num_iters)}",
            f"  {f'{scheduler} is running it' if scheduler else 'no Snakemake is running it'}",
            *(_jobs(run, [job for job in plan if job.iteration == x], now) if x < num_iters else []),
            *_scores(run, x),
            *_pace(run, x, num_iters),
            *_lost_jobs(run),
        ]
    )


def follow(run: Run) -> None:
    """Prints the state of a run every few seconds until it has its final model.

    Raises:
        DataError: the plan or the ledger cannot be read.
    """
    while True:
        clear = "\033[H\033[J" if sys.stdout.isatty() else ""
        print(clear + describe(run, time.time()), flush=True)
        if run.final_model_file.exists():
            return
        time.sleep(PERIOD)


def describe_test_scores(run: Run) -> str:
    """Returns the scores of the final model on the test set as text, without scores that the corpus does not have."""
    scores = json.loads(run.evaluation_file.read_text(encoding="utf-8"))
    texts = []
    if "log_probability" in scores:
        texts.append(f"log-probability {scores['log_probability']:.3f} per frame, accuracy {scores['accuracy']:.1%}")
    texts += [
        f"{unit} error rate {scores[f'{unit}_error_rate']:.2%}"
        for unit in ("word", "phone")
        if f"{unit}_error_rate" in scores
    ]
    return f"on the test set {', '.join(texts)}" if texts else "nothing to score in the test set"


def _stage(run: Run, x: int, num_iters: int) -> str:
    if run.evaluation_file.exists():
        return f"finished; {describe_test_scores(run)}"
    if run.final_model_file.exists():
        return "the final model is written, its evaluation is pending"
    return (
        f"iteration {x} of 0 – {num_iters - 1}"
        if x < num_iters
        else "all iterations are done, the final model is pending"
    )


def _jobs(run: Run, jobs: list[Job], now: float) -> Iterator[str]:
    for job in jobs:
        progress = read_progress(run.progress_file(job.iteration, job.job))
        yield f"  job {job.job}: {_job(progress, run.job_file(job.iteration, job.job), now)}"


def _job(progress: Progress | None, model: Path, now: float) -> str:
    if progress is None:
        return "done" if model.exists() else "waiting"
    attempt = f", attempt {progress.attempt}" if progress.attempt > 1 else ""
    where = f" on {progress.host}{f' (job {progress.number})' if progress.number else ''}" if progress.host else ""
    if progress.state == "failed":
        return f"failed{where}{attempt}: {progress.reason}"
    pace = f", {progress.frames / progress.seconds:,.0f} frames/s" if progress.frames and progress.seconds else ""
    if progress.log_probability is not None:
        pace += f", log-probability {progress.log_probability:.3f} per frame"
    if progress.state == "done":
        return f"done in {progress.seconds:.0f} s{pace}{attempt}"
    silent = f", silent for {now - progress.updated:.0f} s" if now - progress.updated > SILENT else ""
    share = f" {progress.frames / progress.of:.0%}" if progress.of else ""
    return f"running{share}{where}{pace}{attempt}{silent}"


def _scores(run: Run, x: int) -> Iterator[str]:
    for y in range(x, max(-1, x - RECENT), -1):
        if run.diagnostics_file(y).exists():
            scores = json.loads(run.diagnostics_file(y).read_text(encoding="utf-8"))
            yield f"  model {y}: " + "; ".join(
                f"{subset} log-probability {scores[subset]['log_probability']:.3f}, "
                f"accuracy {scores[subset]['accuracy']:.1%}"
                for subset in ("valid", "train")
            )
            return


def _pace(run: Run, x: int, num_iters: int) -> Iterator[str]:
    """Yields the retries and the speed of the last iterations, and the expected end of training."""
    ends: list[float] = []
    frames, retried = [], 0
    for y in range(max(0, x - RECENT), x):
        averaging = read_progress(run.progress_file(y, 0))
        if averaging is not None and run.report_file(y + 1).exists():
            ends.append(averaging.updated)
            records: list[dict[str, Any]] = json.loads(run.report_file(y + 1).read_text(encoding="utf-8"))["records"]
            frames.append(sum(record["frames"] for record in records))
            job_progress = (read_progress(run.progress_file(y, record["job"])) for record in records)
            retried += sum(progress.attempt > 1 for progress in job_progress if progress is not None)
    if retried:
        yield f"  {retried} jobs of the last {len(ends)} iterations were retried"
    seconds = ends[-1] - ends[0] if len(ends) > 1 else 0.0
    if seconds > 0.0:
        each = seconds / (len(ends) - 1)
        line = f"  {sum(frames[1:]) / seconds:,.0f} frames/s, {each:.1f} s per iteration"
        if x < num_iters:
            last = time.strftime("%Y-%m-%d %H:%M", time.localtime(ends[-1] + each * (num_iters - x)))
            line += f"; {num_iters - x} to go, expected end {last}"
        yield line


def _lost_jobs(run: Run) -> Iterator[str]:
    lost_jobs = read_lost_jobs(run.lost_jobs_file)
    if lost_jobs:
        last = lost_jobs[-1]
        yield (
            f"  {len(lost_jobs)} jobs were lost, most recently job {last.job} of iteration {last.iteration}: "
            f"{last.reason} ({run.lost_jobs_file})"
        )
