"""Jobs on SLURM: each is an ``srun``, which waits for it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from ngsgd.clusters.cluster import End, Needs
from ngsgd.clusters.commands import ask

# What srun and the job's slurmstepd say of its end. squeue's states tell less: memory is "FAILED" without cgroups.
REASONS = {
    r"exceeded memory limit|oom.kill|Out Of Memory": End("it used more memory than it had asked for", "memory"),
    r"DUE TO TIME LIMIT": End("it reached its limit of time", "time"),
    r"DUE TO PREEMPTION": End("another job took its place"),
    r"DUE TO NODE FAILURE|Node failure": End("its node failed"),
    r"CANCELLED|Job/step already completing": End("it was cancelled"),
}
# What srun says where the controller is away.
ABSENT = r"Unable to contact slurm controller|Unable to confirm allocation|Socket timed out|Connection refused"


class Slurm:
    """Each job is an allocation of its own."""

    lists_all: ClassVar[bool] = True

    def command(self, name: str, needs: Needs, script: str) -> list[str]:
        asked = [
            "srun", f"--job-name={name}", "--nodes=1", "--ntasks=1", f"--cpus-per-task={needs.threads}",
            "--input=none", "--quiet",
        ]  # fmt: skip
        if needs.mem_mb is not None:
            asked.append(f"--mem={needs.mem_mb}M")
        if needs.runtime is not None:
            asked.append(f"--time={needs.runtime}")
        if needs.gres or needs.gpus:
            asked.append(f"--gres={needs.gres or f'gpu:{needs.gpus}'}")
        if needs.partition:
            asked.append(f"--partition={needs.partition}")
        if needs.account:
            asked.append(f"--account={needs.account}")
        return [*asked, *shlex.split(needs.extra), "bash", "-c", script]

    def environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        # Where the caller is a job itself, srun would make a step of it instead of a job.
        return {
            name: value
            for name, value in environment.items()
            if name == "SLURM_CONF" or not name.startswith(("SLURM_", "SLURMD_", "SRUN_"))
        }

    def end(self, said: str, seconds: float | None, needs: Needs) -> End:
        if seconds is None and re.search(ABSENT, said):
            return End("SLURM did not answer", transient=True)
        for pattern, end in REASONS.items():
            if re.search(pattern, said):
                return end
        return End(" ".join(said.split()) or "it failed")

    def last_order(self, mark: str) -> list[str]:
        return ["true"]  # all do

    def under_way(self, mark: str) -> dict[str, str]:
        states = "--states=PENDING,CONFIGURING,RUNNING,SUSPENDED"
        rows = ask(["squeue", "--me", "--noheader", states, "--format=%A %j"]).splitlines()
        jobs = (row.partition(" ") for row in rows)
        return {number: name for number, _, name in jobs if name.endswith(mark)}

    def cancel(self, numbers: Sequence[str]) -> None:
        if numbers:
            ask(["scancel", *numbers])


class SlurmAllocation(Slurm):
    """Each job is a step in the allocation in which the caller runs, and waits where that has no room for it yet."""

    lists_all: ClassVar[bool] = False

    def command(self, name: str, needs: Needs, script: str) -> list[str]:
        # Partition, account and time are those of the allocation.
        needs = replace(needs, runtime=None, partition=None, account=None)
        srun, *rest = super().command(name, needs, script)
        return [srun, "--exact", *rest]

    def environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        return dict(environment)

    def under_way(self, mark: str) -> dict[str, str]:
        return {}  # steps are no jobs, and end with their allocation
