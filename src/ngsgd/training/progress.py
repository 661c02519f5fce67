"""What each job tells of itself while it works: a small file that it writes anew every few seconds.

The files serve people and ``metrics.tsv`` only. No model depends on them.
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

PERIOD = 5.0  # seconds from one record of a working job to its next

State = Literal["running", "done", "failed"]


@dataclass(frozen=True)
class Progress:
    """How a job stands.

    Attributes:
        state: ``running`` until it says otherwise, also where it was killed.
        attempt: which one of its attempts it is, from 1.
        started: of the job's process, seconds since the epoch.
        updated: when this was written, likewise.
        host: the machine that it runs on.
        number: the cluster's number of the job; None outside of clusters.
        frames: trained on so far.
        of: frames that it has in all.
        log_probability: of these, while they were trained on; natural logarithm, per frame.
        reason: why it failed.
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
        """How long the job has worked."""
        return self.updated - self.started


def read_progress(path: str | os.PathLike[str]) -> Progress | None:
    """What a job has told of itself; None where there is nothing that can be read."""
    try:
        return Progress(**json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_failure(path: str | os.PathLike[str], reason: str) -> None:
    """Tells of a job that could not tell itself that it failed.

    Raises:
        OSError: the file cannot be written.
    """
    now = time.time()
    told = read_progress(path)
    if told is None or told.state == "done":  # it did not come to telling anything
        told = Progress("failed", 1, now, now, "", None)
    _write(path, replace(told, state="failed", updated=now, reason=reason))


class Reporter:
    """Tells how this process's job stands.

    Args:
        path: the job's file.
        of: frames that the job has in all; 0 where that is not what it works on.
    """

    def __init__(self, path: str | os.PathLike[str], of: int = 0) -> None:
        former = read_progress(path)
        self._path = path
        self._told = Progress(
            state="running",
            attempt=former.attempt + 1 if former is not None and former.state != "done" else 1,
            started=_process_start(),
            updated=time.time(),
            host=platform.node(),
            number=os.environ.get("SLURM_JOB_ID") or os.environ.get("JOB_ID"),
            of=of,
        )
        self._next = time.monotonic() + PERIOD
        _write(path, self._told)

    def working(self, frames: int, objective: float) -> None:
        """Tells how far the job has come, if it is time again.

        Args:
            frames: trained on so far.
            objective: sum of their log-probabilities.
        """
        if time.monotonic() >= self._next:
            self._tell("running", frames, objective)
            self._next = time.monotonic() + PERIOD

    def done(self, frames: int = 0, objective: float = 0.0) -> None:
        """Tells that the job has done its work."""
        self._tell("done", frames, objective)

    def _tell(self, state: State, frames: int, objective: float) -> None:
        log_probability = objective / frames if frames else None
        self._told = replace(
            self._told, state=state, updated=time.time(), frames=frames, log_probability=log_probability
        )
        _write(self._path, self._told)


def _write(path: str | os.PathLike[str], progress: Progress) -> None:
    # A log-probability that is not finite has no JSON, and tells nothing.
    fields = {key: value if value == value else None for key, value in asdict(progress).items()}
    write_text(path, json.dumps(fields) + "\n")


def _process_start() -> float:
    """When this process was started, in seconds since the epoch."""
    ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
