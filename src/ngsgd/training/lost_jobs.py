"""Training jobs that were given up: an iteration may go on without a few of them.

What is lost stands in the run's ledger, ``lost.tsv`` beside the plan, before the average is made that does without it,
and in the history of every later model. The plan itself stays what it was; who goes through it with the ledger gets
the same jobs, and the same bytes, again.

Source: none; in ``steps/nnet2/train_multisplice_accel2.sh`` one lost job ends the run.
"""

from __future__ import annotations

import csv
import itertools
import os
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ngsgd.errors import DataError, ModelError, TrainingError
from ngsgd.files import atomic_write
from ngsgd.network.storage import FORMAT, Header, read_header, write_model
from ngsgd.training.plan import Job, iteration_jobs, read_plan
from ngsgd.training.progress import write_failure
from ngsgd.training.run import Run

LOST = "lost"  # key in the history of the file that stands for a lost job's model, and in the history of later models


class LostJob(NamedTuple):
    """A row of ``lost.tsv``: a job that was given up.

    Attributes:
        iteration: from 0.
        job: from 1, within the iteration.
        archive: that it was to train on, from 0.
        frame: label position in the archive's examples, from 0.
        reason: why it was given up.
    """

    iteration: int
    job: int
    archive: int
    frame: int
    reason: str


def read_lost_jobs(path: str | os.PathLike[str]) -> list[LostJob]:
    """The rows of a ``lost.tsv``; none where there is no such file.

    Raises:
        DataError: the file is malformed.
    """
    if not Path(path).exists():
        return []
    try:
        with open(path, encoding="utf-8", newline="") as f:
            rows = csv.reader(f, delimiter="\t")
            if tuple(next(rows, ())) != LostJob._fields:
                raise ValueError("the columns are not those of a ledger")
            return [
                LostJob(int(iteration), int(job), int(archive), int(frame), reason)
                for iteration, job, archive, frame, reason in rows
            ]
    except (OSError, TypeError, ValueError, csv.Error) as e:
        raise DataError(
            f"{os.fspath(path)}: not a ledger of lost jobs ({e}); it belongs to the models beside it: mend it, or "
            "delete it together with all models and jobs of the iterations in it, and of those that follow"
        ) from None


def reassign_lost_archives(plan: Sequence[Job], lost: Collection[tuple[int, int]]) -> list[Job]:
    """The jobs as they are when some have been lost: what these were to train on, others train on later.

    The first job of the next iteration takes the archive and frame that were lost, what it would have taken itself is
    taken by the first one of the iteration after that, and so on: no data falls out of the order but the last.

    Args:
        plan: of the run, or its beginning.
        lost: iteration and number of each lost job.
    """
    if not lost:
        return list(plan)
    jobs: list[Job] = []
    waiting: deque[tuple[int, int]] = deque()
    for _, group in itertools.groupby(plan, key=lambda job: job.iteration):
        rows = list(group)
        for n in range(min(len(waiting), len(rows))):
            waiting.append((rows[n].archive, rows[n].frame))
            archive, frame = waiting.popleft()
            rows[n] = rows[n]._replace(archive=archive, frame=frame)
        waiting.extend((row.archive, row.frame) for row in rows if (row.iteration, row.job) in lost)
        jobs += rows
    return jobs


def lost_jobs_in_history(history: Mapping[str, Any]) -> set[tuple[int, int]]:
    """Iteration and number of each job that a model had to do without, by its history."""
    return {(entry["iteration"], job) for entry in history.get("iterations", []) for job in entry.get(LOST, [])}


def jobs_after_losses(plan: str | os.PathLike[str], iteration: int, lost: Collection[tuple[int, int]]) -> list[Job]:
    """An iteration's jobs, as they are when some of earlier ones have been lost.

    Args:
        plan: of the run, a ``plan.tsv``.
        iteration: from 0.
        lost: iteration and number of each lost job.

    Raises:
        DataError: the plan cannot be read, or has no such iteration.
    """
    jobs = iteration_jobs(plan, iteration)
    if lost:
        jobs = [job for job in reassign_lost_archives(read_plan(plan), lost) if job.iteration == iteration]
    return jobs


def write_lost_marker(job: Job, output: str | os.PathLike[str], reason: str) -> None:
    """Writes what stands for the model of a lost job, unless that has come to be in the meantime.

    Raises:
        OSError: the file cannot be written.
    """
    if not Path(output).exists():
        record = job._asdict() | {LOST: reason}
        write_model(output, {}, Header(format=FORMAT, architecture=[], history={"job": record}))


def record_failure(run: Run, job: Job, reason: str, attempts_left: int, min_jobs: int | None) -> bool:
    """Notes that a job has failed, and gives it up where it is not to be tried again and may be lost.

    Args:
        run: of the job.
        job: as it is in `jobs_after_losses`.
        reason: why it failed, for people.
        attempts_left: how often it will still be tried.
        min_jobs: how many jobs an iteration needs; None for all.

    Returns:
        Whether its iteration can go on: the job was given up, or has made its model after all.

    Raises:
        OSError: a file cannot be written.
        DataError: the plan cannot be read.
    """
    write_failure(run.progress(job.iteration, job.job), reason)
    if attempts_left > 0 or min_jobs is None or min_jobs >= len(iteration_jobs(run.plan, job.iteration)):
        return False
    write_lost_marker(job, run.job(job.iteration, job.job), reason)
    return True


def record_lost_jobs(
    rows: Sequence[Job],
    outputs: Sequence[Path],
    ledger: str | os.PathLike[str],
    min_jobs: int | None,
) -> dict[int, str]:
    """The lost jobs of an iteration, after having written those into the ledger that were not there.

    Args:
        rows: of the iteration's jobs.
        outputs: their models, or what stands for them.
        ledger: of the run.
        min_jobs: how many jobs an iteration needs, at most as many as it has; None for all.

    Returns:
        For the number of each lost job the reason.

    Raises:
        ModelError: a job's model cannot be read, or is not of that job.
        DataError: the ledger cannot be read.
        TrainingError: more jobs are lost than may be. What stands for them is gone then, so that the next call makes
            them again.
    """
    lost_jobs = read_lost_jobs(ledger)
    known = {lost.job: lost.reason for lost in lost_jobs if lost.iteration == rows[0].iteration}
    new: list[LostJob] = []
    for row, output in zip(rows, outputs, strict=True):
        if row.job not in known:
            record = read_header(output)["history"].get("job", {})
            if {field: record.get(field) for field in Job._fields} != row._asdict():
                raise ModelError(
                    f"{output}: not the model of job {row.job} of iteration {row.iteration} as the plan, or what was "
                    "lost before, has it; delete it and run again"
                )
            reason = record.get(LOST)
            if reason is not None:
                new.append(LostJob(row.iteration, row.job, row.archive, row.frame, " ".join(str(reason).split())))
    needed = len(rows) if min_jobs is None else min(min_jobs, len(rows))
    if new and len(rows) - len(known) - len(new) < needed:
        for lost in new:
            outputs[lost.job - 1].unlink(missing_ok=True)
        raise TrainingError(
            f"iteration {rows[0].iteration}: {len(known) + len(new)} of {len(rows)} jobs are lost "
            f"({'; '.join(f'job {lost.job}: {lost.reason}' for lost in new)}), and min_jobs is {needed}; "
            "see to their cause, and call again"
        )
    if new:
        _write(ledger, sorted([*lost_jobs, *new]))
    return known | {lost.job: lost.reason for lost in new}


class StragglerMonitor:
    """Tells for which of their jobs iterations have waited long enough.

    Args:
        timeout: seconds without a further model, since there were ``min_jobs`` of them.
        min_jobs: how many jobs an iteration needs, at most as many as it has.
    """

    def __init__(self, timeout: float, min_jobs: int) -> None:
        self._timeout, self._min_jobs = timeout, min_jobs
        self._seen: dict[Path, tuple[int, float]] = {}
        self._of_use: dict[Path, bool] = {}

    def overdue(self, outputs: Sequence[Path], now: float) -> bool:
        """Whether the jobs of an iteration that are still under way are to be given up.

        Args:
            outputs: the models of all of the iteration's jobs.
            now: seconds of a clock that only goes on.
        """
        made = sum(self._made(output) for output in outputs)
        if made != self._seen.get(outputs[0], (-1, 0.0))[0]:
            self._seen[outputs[0]] = made, now
        since = self._seen[outputs[0]][1]
        return made >= min(self._min_jobs, len(outputs)) and now - since > self._timeout

    def _made(self, output: Path) -> bool:
        """Whether a job has made its model, and not been given up."""
        if output not in self._of_use and output.exists():
            try:
                self._of_use[output] = LOST not in read_header(output)["history"].get("job", {})
            except ModelError:
                return False
        return self._of_use.get(output, False)


def _write(path: str | os.PathLike[str], lost_jobs: Iterable[LostJob]) -> None:
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as f:
        rows = csv.writer(f, delimiter="\t", lineterminator="\n")
        rows.writerow(LostJob._fields)
        rows.writerows(lost_jobs)
