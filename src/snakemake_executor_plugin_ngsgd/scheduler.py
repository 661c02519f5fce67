"""What this project wants of a cluster's scheduler.

A job is a command that the scheduler's own client runs and waits for, so that its end is known at once, without asking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol


@dataclass(frozen=True)
class Resources:
    """What a job asks its cluster for.

    Attributes:
        threads: processor cores.
        mem_mb: memory, MB; None for the cluster's default.
        runtime: limit of time, minutes; None for the cluster's default.
        gpus: number of GPUs.
        gres: SLURM's description of these where a number is too little, such as ``gpu:a100:1``.
        partition: of SLURM, or queue of Grid Engine; None for the cluster's default.
        account: of SLURM, or project of Grid Engine.
        extra: further arguments for the scheduler's command.
    """

    threads: int = 1
    mem_mb: int | None = None
    runtime: int | None = None
    gpus: int = 0
    gres: str | None = None
    partition: str | None = None
    account: str | None = None
    extra: str = ""


class Failure(NamedTuple):
    """Why a job ended badly.

    Attributes:
        reason: for people.
        lacking: of what more would have helped, where the scheduler says so.
        transient: whether it had not even begun, since the scheduler was not there.
    """

    reason: str
    exhausted: Literal["memory", "time"] | None = None
    not_started: bool = False


class Scheduler(Protocol):
    """A scheduler. Names of jobs are unique among those under way; those of one caller end with a mark of its own.

    Attributes:
        lists_all: whether `active_jobs` tells of all jobs.
    """

    lists_every_job: ClassVar[bool]

    def command(self, name: str, resources: Resources, script: str) -> list[str]:
        """The command that runs a script of bash's as a job, and waits for it.

        It cancels the job when it gets SIGTERM. Its exit status is not to be believed: srun's is 0 where a node fails.
        """

    def environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        """What the command is to be started with, given what this process was started with."""

    def outcome(self, output: str, seconds: float | None, resources: Resources) -> Failure:
        """Why a job has failed.

        Args:
            said: what its command wrote, and the end of its log.
            seconds: since the job began; None if it did not.
            needs: what the job had asked for.
        """

    def cancel_all_command(self, mark: str) -> list[str]:
        """The command that cancels what has a mark and did not heed the end of its own command."""

    def active_jobs(self, mark: str) -> dict[str, str]:
        """The names, by number, of the jobs with a mark that wait or run.

        Raises:
            ClusterError: the scheduler does not answer.
        """

    def cancel(self, numbers: Sequence[str]) -> None:
        """Cancels jobs, those that have ended in the meantime aside.

        Raises:
            ClusterError: the scheduler does not answer.
        """
