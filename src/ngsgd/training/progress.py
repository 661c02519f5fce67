"""Progress files: each job rewrites a small file every few seconds while it runs.

Only people and ``metrics.tsv`` read these files. No model depends on them.
"""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from ngsgd.files import write_text

PERIOD = 5.0  # seconds between updates of a running job's file

State = Literal["running", "done", "failed"]


@dataclass(frozen=True)
class Progress:
    """A job's progress.

    Attributes:
        state: stays ``running`` if the job was killed before it could write another state.
        attempt: number of the attempt, from 1.
        started: when the job's process started, in seconds since the epoch.
        updated: when this was written, in seconds since the epoch.
        host: name of the machine.
        number: the cluster's job number; None outside clusters.
        frames: frames trained on so far.
        of: frames in all; 0 if unknown.
        log_probability: mean over ``frames`` while they were trained on; natural logarithm, per frame.
        reason: why the job failed.
    """

    state: State
    attempt: int
    started: float
    updated: float
    host: str
    number: str | None
    frames: int = 0
    of: int = 0
    log_probability: float | None = None
    reason: str | None = None

    @property
    def seconds(self) -> float:
        """How long the job has run."""
        return self.updated - self.started


def read_progress(path: str | os.PathLike[str]) -> Progress | None:
    """Reads a progress file; None if it is missing or malformed."""
    try:
        return Progress(**json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_failure(path: str | os.PathLike[str], reason: str) -> None:
    """Marks a job as failed that could not do so itself.

    Raises:
        OSError: the file cannot be written.
    """
    now = time.time()
    progress = read_progress(path)
    if progress is None or progress.state == "done":  # the failed attempt did not write anything
        progress = Progress("failed", 1, now, now, "", None)
    _write(path, replace(progress, state="failed", updated=now, reason=reason))


class Reporter:
    """Writes the progress file of this process's job.

    Args:
        path: of the progress file.
        of: frames that the job has in all; 0 if it does not train on frames.
    """

    def __init__(self, path: str | os.PathLike[str], of: int = 0) -> None:
        previous = read_progress(path)
        self._path = path
        self._progress = Progress(
            state="running",
            attempt=previous.attempt + 1 if previous is not None and previous.state != "done" else 1,
            started=_process_start(),
            updated=time.time(),
            host=platform.node(),
            number=os.environ.get("SLURM_JOB_ID") or os.environ.get("JOB_ID"),
            of=of,
        )
        self._next = time.monotonic() + PERIOD
        _write(path, self._progress)

    def working(self, frames: int, objective: float) -> None:
        """Updates the file if `PERIOD` seconds have passed since the last update.

        Args:
            frames: frames trained on so far.
            objective: sum of their log-probabilities.
        """
        if time.monotonic() >= self._next:
            self._update("running", frames, objective)
            self._next = time.monotonic() + PERIOD

    def done(self, frames: int = 0, objective: float = 0.0) -> None:
        """Marks the job as done."""
        self._update("done", frames, objective)

    def _update(self, state: State, frames: int, objective: float) -> None:
        log_probability = objective / frames if frames else None
        self._progress = replace(
            self._progress, state=state, updated=time.time(), frames=frames, log_probability=log_probability
        )
        _write(self._path, self._progress)


def _write(path: str | os.PathLike[str], progress: Progress) -> None:
    # JSON has no NaN, which a log-probability may be.
    fields = {key: value if value == value else None for key, value in asdict(progress).items()}
    write_text(path, json.dumps(fields) + "\n")


def _process_start() -> float:
    """Returns when this process started, in seconds since the epoch."""
    ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
