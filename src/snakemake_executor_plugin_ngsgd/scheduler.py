"""The interface of a cluster's scheduler, and the registry of the supported ones.

A job is a client command of the scheduler, such as ``srun``, that runs the job and waits for it: the executor learns of
the job's end at once, without polling the scheduler. To add a scheduler, write a class with the methods of `Scheduler`
in a module of its own, decorate it with `register_scheduler`, and import the module in `settings`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Protocol, Self, TypeVar

from snakemake_interface_common.exceptions import WorkflowError

if TYPE_CHECKING:
    from snakemake_executor_plugin_ngsgd.settings import ExecutorSettings


@dataclass(frozen=True)
class Resources:
    """Resources that a job requests.

    Attributes:
        threads: threads of the job, and the cores to request.
        cpus: cores to request instead.
        mem_mb: memory, MB; None for the cluster's default.
        mem_mb_per_cpu: memory per core, MB; replaces ``mem_mb``.
        runtime: time limit, minutes; None for the cluster's default.
        gpus: number of GPUs.
        gpu_model: SLURM's type of the GPUs, such as ``a100``.
        gres: the scheduler's own request for GPUs, such as ``gpu:a100:1`` on SLURM; replaces ``gpus``.
        partition: SLURM's partition or Grid Engine's queue; None for the cluster's default.
        account: SLURM's account or Grid Engine's project.
        constraint: SLURM's features that a node must have.
        qos: SLURM's quality of service.
        reservation: SLURM's reservation.
        extra: further arguments for the scheduler's command.
    """

    threads: int = 1
    cpus: int | None = None
    mem_mb: int | None = None
    mem_mb_per_cpu: int | None = None
    runtime: int | None = None
    gpus: int = 0
    gpu_model: str | None = None
    gres: str | None = None
    partition: str | None = None
    account: str | None = None
    constraint: str | None = None
    qos: str | None = None
    reservation: str | None = None
    extra: str = ""

    @property
    def cores(self) -> int:
        """Number of cores to request."""
        return self.cpus or self.threads

    @property
    def memory(self) -> int | None:
        """Requested memory of the whole job, MB."""
        return self.mem_mb if self.mem_mb_per_cpu is None else self.mem_mb_per_cpu * self.cores

    def with_memory(self, least: int) -> Resources:
        """Returns the same request with at least so much memory, MB, for the whole job."""
        if self.memory is not None and self.memory >= least:
            return self
        if self.mem_mb_per_cpu is not None:
            return replace(self, mem_mb_per_cpu=-(-least // self.cores))
        return replace(self, mem_mb=least)


class Failure(NamedTuple):
    """Why a job failed.

    Attributes:
        reason: for people.
        exhausted: the resource that the job had too little of, if known.
        not_started: whether the job never began, since the scheduler did not answer.
    """

    reason: str
    exhausted: Literal["memory", "time"] | None = None
    not_started: bool = False


class Scheduler(Protocol):
    """A cluster's scheduler.

    The names of active jobs are unique. Those of one workflow end with the same suffix, its mark.

    Attributes:
        lists_every_job: whether `active_jobs` lists every job; if so, a job that it does not list has ended.
        lacks: the resources that it cannot request.
    """

    lists_every_job: ClassVar[bool]
    lacks: ClassVar[frozenset[str]]

    @classmethod
    def from_settings(cls, settings: ExecutorSettings) -> Self:
        """Makes the scheduler from the executor's options.

        Raises:
            WorkflowError: the scheduler cannot be used here.
        """

    def command(self, name: str, resources: Resources, script: str) -> list[str]:
        """Returns the command that runs a bash script as a job and waits for it.

        The command cancels the job when it gets SIGTERM. Its exit status is ignored: that of srun is 0 if a node fails.
        """

    def environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Returns the environment variables of `command`, given those of this process."""

    def outcome(self, output: str, seconds: float | None, resources: Resources) -> Failure:
        """Returns why a job failed.

        Args:
            output: output of the job's command, and the end of the job's log.
            seconds: time since the job began; None if it did not begin.
            resources: the job's request.
        """

    def cancel_all_command(self, mark: str) -> list[str]:
        """Returns the command that cancels the jobs with a mark that SIGTERM to their own commands may not cancel."""

    def active_jobs(self, mark: str) -> dict[str, str]:
        """Returns the names, by number, of the pending and running jobs with a mark.

        Raises:
            ClusterError: the scheduler does not answer.
        """

    def cancel(self, numbers: Sequence[str]) -> None:
        """Cancels jobs, ignoring jobs that have ended.

        Raises:
            ClusterError: the scheduler does not answer.
        """


_SchedulerT = TypeVar("_SchedulerT", bound=Scheduler)
_REGISTRY: dict[str, type[Scheduler]] = {}


def register_scheduler(name: str) -> Callable[[type[_SchedulerT]], type[_SchedulerT]]:
    """Returns a class decorator that registers a scheduler as the value ``name`` of ``--ngsgd-scheduler``."""

    def register(scheduler: type[_SchedulerT]) -> type[_SchedulerT]:
        if name in _REGISTRY:
            raise ValueError(f"scheduler {name} is registered already, by {_REGISTRY[name].__qualname__}")
        _REGISTRY[name] = scheduler
        return scheduler

    return register


def scheduler_names() -> list[str]:
    """Returns the names of the registered schedulers, sorted."""
    return sorted(_REGISTRY)


def make_scheduler(settings: ExecutorSettings) -> Scheduler:
    """Makes the scheduler that the options name.

    Raises:
        WorkflowError: no scheduler has that name, or it cannot be used here.
    """
    if settings.scheduler not in _REGISTRY:
        known = ", ".join(scheduler_names())
        raise WorkflowError(f"--ngsgd-scheduler {settings.scheduler}: no such scheduler; use one of {known}")
    return _REGISTRY[settings.scheduler].from_settings(settings)
