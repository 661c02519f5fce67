"""Jobs on Grid Engine: each is a ``qrsh``, which waits for it. ``qsub -sync y`` hears of its end a second later."""

from __future__ import annotations

import re
import shlex
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ngsgd.errors import ClusterError
from snakemake_executor_plugin_ngsgd.commands import run_scheduler_command
from snakemake_executor_plugin_ngsgd.scheduler import Failure, Resources

# What qrsh says where the master is away.
UNREACHABLE = r"unable to (send message to|contact) qmaster"
NO_MEMORY = r"MemoryError|[Cc]annot allocate memory|can't allocate memory"


@dataclass(frozen=True)
class GridEngine:
    """Jobs by the names that a site has for what they need; where they differ, the profile says so.

    Attributes:
        memory: resource that is asked for memory, for each thread.
        gpu: consumable resource that is asked for GPUs.
        parallel_environment: with its slots on one host.
    """

    lists_every_job: ClassVar[bool] = True
    memory: str = "mem_free"
    gpu: str = "gpu"
    parallel_environment: str = "smp"

    def command(self, name: str, resources: Resources, script: str) -> list[str]:
        command = ["qrsh", "-now", "no", "-noshell", "-V", "-cwd", "-N", name]
        if resources.threads > 1:
            command += ["-pe", self.parallel_environment, str(resources.threads)]
        if resources.mem_mb is not None:
            command += ["-l", f"{self.memory}={-(-resources.mem_mb // resources.threads)}M"]
        if resources.runtime is not None:
            command += ["-l", f"h_rt={60 * resources.runtime}"]
        if resources.gres or resources.gpus:
            command += ["-l", resources.gres or f"{self.gpu}={resources.gpus}"]
        if resources.partition:
            command += ["-q", resources.partition]
        if resources.account:
            command += ["-P", resources.account]
        return [*command, *shlex.split(resources.extra), "bash", "-c", script]

    def environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        return dict(environment)

    def outcome(self, output: str, seconds: float | None, resources: Resources) -> Failure:
        if seconds is None and re.search(UNREACHABLE, output):
            return Failure("Grid Engine's master did not answer", not_started=True)
        if re.search(NO_MEMORY, output):
            return Failure("it used more memory than it had asked for", "memory")
        if resources.runtime is not None and seconds is not None and seconds >= 60 * resources.runtime - 1:
            return Failure("it reached its limit of time", "time")
        return Failure(" ".join(output.split()) or "it was cancelled, or killed")

    def cancel_all_command(self, mark: str) -> list[str]:
        return ["qdel", f"*{mark}"]  # those that are pending

    def active_jobs(self, mark: str) -> dict[str, str]:
        try:
            jobs = ET.fromstring(run_scheduler_command(["qstat", "-xml"])).iter("job_list")
        except ET.ParseError as e:
            raise ClusterError(f"qstat -xml: {e}") from None
        # What has been deleted stays on the list where its host is gone.
        listed = {
            job.findtext("JB_job_number", ""): job.findtext("JB_name", "")
            for job in jobs
            if "d" not in job.findtext("state", "")
        }
        return {number: name for number, name in listed.items() if name.endswith(mark)}

    def cancel(self, numbers: Sequence[str]) -> None:
        if numbers:
            run_scheduler_command(["qdel", *numbers])
