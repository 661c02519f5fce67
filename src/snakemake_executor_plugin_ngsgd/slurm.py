"""Jobs on SLURM: each is an ``srun``, which waits for it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from snakemake_executor_plugin_ngsgd.commands import run_scheduler_command
from snakemake_executor_plugin_ngsgd.scheduler import Failure, Resources

# What srun and the job's slurmstepd say of its end. squeue's states tell less: memory is "FAILED" without cgroups.
REASONS = {
    r"exceeded memory limit|oom.kill|Out Of Memory": Failure("it used more memory than it had asked for", "memory"),
    r"DUE TO TIME LIMIT": Failure("it reached its limit of time", "time"),
    r"DUE TO PREEMPTION": Failure("another job took its place"),
    r"DUE TO NODE FAILURE|Node failure": Failure("its node failed"),
    r"CANCELLED|Job/step already completing": Failure("it was cancelled"),
}
# What srun says where the controller is away.
UNREACHABLE = r"Unable to contact slurm controller|Unable to confirm allocation|Socket timed out|Connection refused"


class Slurm:
    """Each job is an allocation of its own."""

    lists_every_job: ClassVar[bool] = True

    def command(self, name: str, resources: Resources, script: str) -> list[str]:
        command = [
            "srun", f"--job-name={name}", "--nodes=1", "--ntasks=1", f"--cpus-per-task={resources.threads}",
            "--input=none", "--quiet",
        ]  # fmt: skip
        if resources.mem_mb is not None:
            command.append(f"--mem={resources.mem_mb}M")
        if resources.runtime is not None:
            command.append(f"--time={resources.runtime}")
        if resources.gres or resources.gpus:
            command.append(f"--gres={resources.gres or f'gpu:{resources.gpus}'}")
        if resources.partition:
            command.append(f"--partition={resources.partition}")
        if resources.account:
            command.append(f"--account={resources.account}")
        return [*command, *shlex.split(resources.extra), "bash", "-c", script]

    def environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        # Where the caller is a job itself, srun would make a step of it instead of a job.
        return {
            name: value
            for name, value in environment.items()
            if name == "SLURM_CONF" or not name.startswith(("SLURM_", "SLURMD_", "SRUN_"))
        }

    def outcome(self, output: str, seconds: float | None, resources: Resources) -> Failure:
        if seconds is None and re.search(UNREACHABLE, output):
            return Failure("SLURM did not answer", not_started=True)
        for pattern, outcome in REASONS.items():
            if re.search(pattern, output):
                return outcome
        return Failure(" ".join(output.split()) or "it failed")

    def cancel_all_command(self, mark: str) -> list[str]:
        return ["true"]  # all do

    def active_jobs(self, mark: str) -> dict[str, str]:
        states = "--states=PENDING,CONFIGURING,RUNNING,SUSPENDED"
        rows = run_scheduler_command(["squeue", "--me", "--noheader", states, "--format=%A %j"]).splitlines()
        jobs = (row.partition(" ") for row in rows)
        return {number: name for number, _, name in jobs if name.endswith(mark)}

    def cancel(self, numbers: Sequence[str]) -> None:
        if numbers:
            run_scheduler_command(["scancel", *numbers])


class SlurmAllocation(Slurm):
    """Each job is a step in the allocation in which the caller runs, and waits where that has no room for it yet."""

    lists_every_job: ClassVar[bool] = False

    def command(self, name: str, resources: Resources, script: str) -> list[str]:
        # Partition, account and time are those of the allocation.
        resources = replace(resources, runtime=None, partition=None, account=None)
        srun, *rest = super().command(name, resources, script)
        return [srun, "--exact", *rest]

    def environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        return dict(environment)

    def active_jobs(self, mark: str) -> dict[str, str]:
        return {}  # steps are no jobs, and end with their allocation
