"""Lost jobs: training jobs that were given up, so that their iteration goes on without them.

A lost job is recorded in the run's ledger, ``lost.tsv`` next to the plan, before its iteration is averaged, and in the
history of every later model. The plan does not change: plan and ledger together reproduce the same jobs, and the same
bytes.

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

LOST = "lost"  # history key, in the marker that replaces a lost job's model and in all later models


class LostJob(NamedTuple):
    """A row of ``lost.tsv``.

    Attributes:
        iteration: from 0.
        job: from 1, within the iteration.
        archive: archive that it was to train on, from 0.
        frame: label position in the archive's examples, from 0.
        reason: why it was given up.
    """

    iteration: int
    job: int
    archive: int
    frame: int
    reason: str


def read_lost_jobs(path: str | os.PathLike[str]) -> list[LostJob]:
    """Reads a ``lost.tsv``; no rows if there is no such file.

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
            f"{os.fspath(path)}: not a ledger of lost jobs ({e}); repair it, or delete it together with the models of "
            "the iterations that it names and of all later iterations, in models/ and jobs/"
        ) from None


def reassign_lost_archives(plan: Sequence[Job], lost: Collection[tuple[int, int]]) -> list[Job]:
    """Returns the plan's jobs with the archives of lost jobs reassigned to later jobs.

    The first job of the next iteration takes the archive and frame of the lost job; its own archive and frame pass to
    the first job of the iteration after that, and so on, so that only data at the end of the plan is skipped.

    Args:
        plan: of the run, or its first rows.
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
    """Returns iteration and number of each lost job in a model's history."""
    return {(entry["iteration"], job) for entry in history.get("iterations", []) for job in entry.get(LOST, [])}


def jobs_after_losses(plan: str | os.PathLike[str], iteration: int, lost: Collection[tuple[int, int]]) -> list[Job]:
    """Returns an iteration's jobs, with the archives of lost jobs reassigned.

    Args:
        plan: the run's ``plan.tsv``.
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
    """Writes a marker instead of a lost job's model, unless the model exists by now.

    Raises:
        OSError: the file cannot be written.
    """
    if not Path(output).exists():
        record = job._asdict() | {LOST: reason}
        write_model(output, {}, Header(format=FORMAT, architecture=[], history={"job": record}))


def record_failure(
    job: Job, plan: Path, output: Path, progress: Path, reason: str, attempts_left: int, min_jobs: int | None
) -> bool:
    """Records that a job failed, and gives it up if no attempt is left and the iteration may go on without it.

    Args:
        job: as `jobs_after_losses` returns it.
        plan: the run's ``plan.tsv``.
        output: path of the job's model.
        progress: path of the job's progress file.
        reason: why it failed, as people read it.
        attempts_left: number of retries left.
        min_jobs: number of jobs that an iteration needs; None for all.

    Returns:
        Whether the iteration can go on: the job was given up, or its model exists after all.

    Raises:
        OSError: a file cannot be written.
        DataError: the plan cannot be read.
    """
    write_failure(progress, reason)
    if attempts_left > 0 or min_jobs is None or min_jobs >= len(iteration_jobs(plan, job.iteration)):
        return False
    write_lost_marker(job, output, reason)
    return True


def record_lost_jobs(
    rows: Sequence[Job],
    outputs: Mapping[int, Path],
    ledger: str | os.PathLike[str],
    min_jobs: int | None,
) -> dict[int, str]:
    """Adds an iteration's newly lost jobs to the ledger, and returns all its lost jobs.

    Args:
        rows: the iteration's jobs.
        outputs: for each job number the path of its model, or of the marker that replaces it; jobs in the ledger may
            be left out.
        ledger: path of the run's ledger.
        min_jobs: number of jobs that an iteration needs, limited to the number it has; None for all.

    Returns:
        Job number -> reason, for each lost job.

    Raises:
        ModelError: a job's model cannot be read, or belongs to another job.
        DataError: the ledger cannot be read.
        TrainingError: fewer than ``min_jobs`` jobs are left. The new markers have been deleted, so that the next call
            runs these jobs again.
    """
    lost_jobs = read_lost_jobs(ledger)
    known = {lost.job: lost.reason for lost in lost_jobs if lost.iteration == rows[0].iteration}
    new: list[LostJob] = []
    for row in rows:
        if row.job not in known:
            output = outputs[row.job]
            record = read_header(output)["history"].get("job", {})
            if {field: record.get(field) for field in Job._fields} != row._asdict():
                raise ModelError(
                    f"{output}: not the model of job {row.job} of iteration {row.iteration} in the plan and lost.tsv; "
                    "delete it and run again"
                )
            reason = record.get(LOST)
            if reason is not None:
                new.append(LostJob(row.iteration, row.job, row.archive, row.frame, " ".join(str(reason).split())))
    needed = len(rows) if min_jobs is None else min(min_jobs, len(rows))
    if new and len(rows) - len(known) - len(new) < needed:
        for lost in new:
            outputs[lost.job].unlink(missing_ok=True)
        raise TrainingError(
            f"iteration {rows[0].iteration}: {len(known) + len(new)} of {len(rows)} jobs are lost "
            f"({'; '.join(f'job {lost.job}: {lost.reason}' for lost in new)}), and min_jobs is {needed}; "
            "remove the cause and run again"
        )
    if new:
        _write(ledger, sorted([*lost_jobs, *new]))
    return known | {lost.job: lost.reason for lost in new}


class StragglerMonitor:
    """Decides when an iteration has waited long enough for its last jobs.

    Args:
        timeout: seconds without another finished model after which the jobs still running are given up, once
            ``min_jobs`` models are finished.
        min_jobs: number of jobs that an iteration needs, limited to the number it has.
    """

    def __init__(self, timeout: float, min_jobs: int) -> None:
        self._timeout, self._min_jobs = timeout, min_jobs
        self._last_change: dict[Path, tuple[int, float]] = {}
        self._trained: dict[Path, bool] = {}

    def overdue(self, outputs: Sequence[Path], now: float) -> bool:
        """Returns whether an iteration's running jobs should be given up.

        Args:
            outputs: paths of the models of all the iteration's jobs.
            now: seconds of a monotonic clock.
        """
        finished = sum(self._is_finished(output) for output in outputs)
        if finished != self._last_change.get(outputs[0], (-1, 0.0))[0]:
            self._last_change[outputs[0]] = finished, now
        since = self._last_change[outputs[0]][1]
        return finished >= min(self._min_jobs, len(outputs)) and now - since > self._timeout

    def _is_finished(self, output: Path) -> bool:
        """Returns whether a job has written its model; a lost job's marker does not count."""
        if output not in self._trained and output.exists():
            try:
                self._trained[output] = LOST not in read_header(output)["history"].get("job", {})
            except ModelError:
                return False
        return self._trained.get(output, False)


def _write(path: str | os.PathLike[str], lost_jobs: Iterable[LostJob]) -> None:
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as f:
        rows = csv.writer(f, delimiter="\t", lineterminator="\n")
        rows.writerow(LostJob._fields)
        rows.writerows(lost_jobs)
