"""SLURM: each job is an ``srun`` command, which waits for it."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Self

from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_ngsgd.commands import run_scheduler_command
from snakemake_executor_plugin_ngsgd.scheduler import Failure, Resources, register_scheduler

if TYPE_CHECKING:
    from snakemake_executor_plugin_ngsgd.settings import ExecutorSettings

# Messages of srun and slurmstepd about a job's end. The states that squeue reports are less specific: without cgroups
# a job that ran out of memory is "FAILED".
REASONS = {
    r"exceeded memory limit|oom.kill|Out Of Memory": Failure("it used more memory than it had asked for", "memory"),
    r"DUE TO TIME LIMIT": Failure("it reached its limit of time", "time"),
    r"DUE TO PREEMPTION": Failure("another job took its place"),
    r"DUE TO NODE FAILURE|Node failure": Failure("its node failed"),
    r"CANCELLED|Job/step already completing": Failure("it was cancelled"),
}
CONNECTION = ("SLURM_CONF", "SLURM_JWT")  # variables by which commands find the controller
# Variables of users and sites that are options of srun. An allocation does not set them.
REQUESTS = (
    "SLURM_ACCOUNT", "SLURM_CLUSTERS", "SLURM_CONSTRAINT", "SLURM_PARTITION", "SLURM_QOS", "SLURM_RESERVATION",
    "SLURM_TIMELIMIT", "SLURM_WCKEY",
)  # fmt: skip
# Messages of srun if slurmctld does not answer.
UNREACHABLE = r"Unable to contact slurm controller|Unable to confirm allocation|Socket timed out|Connection refused"


def _without_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    prefixes = ("SLURM_", "SLURMD_", "SRUN_")
    return {name: value for name, value in environment.items() if not name.startswith(prefixes)}


def _selected(environment: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    return {name: environment[name] for name in names if name in environment}


@register_scheduler("slurm")
class Slurm:
    """Runs each job in its own allocation."""

    lists_every_job: ClassVar[bool] = True
    lacks: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_settings(cls, settings: ExecutorSettings) -> Self:
        return cls()

    def command(self, name: str, resources: Resources, script: str) -> list[str]:
        command = [
            "srun", f"--job-name={name}", "--nodes=1", "--ntasks=1", f"--cpus-per-task={resources.cores}",
            "--input=none", "--quiet",
        ]  # fmt: skip
        if resources.mem_mb_per_cpu is not None:
            command.append(f"--mem-per-cpu={resources.mem_mb_per_cpu}M")
        elif resources.mem_mb is not None:
            command.append(f"--mem={resources.mem_mb}M")
        if resources.runtime is not None:
            command.append(f"--time={resources.runtime}")
        if resources.gres or resources.gpus:
            gpus = ":".join(filter(None, ["gpu", resources.gpu_model, str(resources.gpus)]))
            command.append(f"--gres={resources.gres or gpus}")
        for option in ("partition", "account", "constraint", "qos", "reservation"):
            if value := getattr(resources, option):
                command.append(f"--{option}={value}")
        return [*command, *shlex.split(resources.extra), "bash", "-c", script]

    def environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        # With the variables of an allocation, srun would start a step in it instead of a new job.
        kept = _without_slurm(environment) | _selected(environment, CONNECTION + REQUESTS)
        # Sites and users set the defaults of sbatch, too, which srun does not read.
        for name in REQUESTS:
            value = environment.get(name.replace("SLURM_", "SBATCH_"))
            if value is not None:
                kept.setdefault(name, value)
        return kept

    def outcome(self, output: str, seconds: float | None, resources: Resources) -> Failure:
        if seconds is None and re.search(UNREACHABLE, output):
            return Failure("SLURM did not answer", not_started=True)
        for pattern, outcome in REASONS.items():
            if re.search(pattern, output):
                return outcome
        return Failure(" ".join(output.split()) or "it failed")

    def cancel_all_command(self, mark: str) -> list[str]:
        return ["true"]  # SIGTERM to srun cancels pending jobs too

    def active_jobs(self, mark: str) -> dict[str, str]:
        states = "--states=PENDING,CONFIGURING,RUNNING,SUSPENDED"
        rows = run_scheduler_command(["squeue", "--me", "--noheader", states, "--format=%A %j"]).splitlines()
        jobs = (row.partition(" ") for row in rows)
        return {number: name for number, _, name in jobs if name.endswith(mark)}

    def cancel(self, numbers: Sequence[str]) -> None:
        if numbers:
            run_scheduler_command(["scancel", *numbers])


@register_scheduler("slurm-allocation")
class SlurmAllocation(Slurm):
    """Runs each job as a step of the allocation that Snakemake runs in; steps wait until it has room for them."""

    lists_every_job: ClassVar[bool] = False

    @classmethod
    def from_settings(cls, settings: ExecutorSettings) -> Self:
        if "SLURM_JOB_ID" not in os.environ:
            raise WorkflowError(
                "--ngsgd-scheduler slurm-allocation: not in an allocation of SLURM; start Snakemake by sbatch or salloc"
            )
        return cls()

    def command(self, name: str, resources: Resources, script: str) -> list[str]:
        # The allocation determines these.
        resources = replace(
            resources, runtime=None, partition=None, account=None, constraint=None, qos=None, reservation=None
        )
        srun, *rest = super().command(name, resources, script)
        return [srun, "--exact", *rest]

    def environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        # Others describe the allocation's own request, such as SLURM_MEM_PER_CPU, and srun would read them as options.
        return _without_slurm(environment) | _selected(environment, (*CONNECTION, "SLURM_JOB_ID", "SLURM_JOBID"))

    def active_jobs(self, mark: str) -> dict[str, str]:
        return {}  # squeue does not list steps, which end with their allocation
