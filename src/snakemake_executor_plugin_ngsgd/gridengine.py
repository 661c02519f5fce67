"""Grid Engine: each job is a ``qrsh`` command, which waits for it (``qsub -sync y`` ends a second later)."""

from __future__ import annotations

import re
import shlex
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from ngsgd.errors import ClusterError
from snakemake_executor_plugin_ngsgd.commands import run_scheduler_command
from snakemake_executor_plugin_ngsgd.scheduler import Failure, Resources, register_scheduler

if TYPE_CHECKING:
    from snakemake_executor_plugin_ngsgd.settings import ExecutorSettings

# Messages of qrsh if the master does not answer.
UNREACHABLE = r"unable to (send message to|contact) qmaster"
NO_MEMORY = r"MemoryError|[Cc]annot allocate memory|can't allocate memory"


@register_scheduler("sge")
@dataclass(frozen=True)
class GridEngine:
    """Requests resources by the names that the site has configured for them.

    Attributes:
        memory: resource for memory, requested per thread.
        gpu: consumable resource for GPUs.
        parallel_environment: one that allocates all slots on one host.
    """

    lists_every_job: ClassVar[bool] = True
    lacks: ClassVar[frozenset[str]] = frozenset({"constraint", "qos", "reservation", "gpu_model"})
    memory: str = "mem_free"
    gpu: str = "gpu"
    parallel_environment: str = "smp"

    @classmethod
    def from_settings(cls, settings: ExecutorSettings) -> Self:
        return cls(settings.sge_memory, settings.sge_gpu, settings.sge_parallel_environment)

    def command(self, name: str, resources: Resources, script: str) -> list[str]:
        command = ["qrsh", "-now", "no", "-noshell", "-V", "-cwd", "-N", name]
        if resources.cores > 1:
            command += ["-pe", self.parallel_environment, str(resources.cores)]
        if resources.memory is not None:
            command += ["-l", f"{self.memory}={-(-resources.memory // resources.cores)}M"]
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
        return ["qdel", f"*{mark}"]  # a pending qrsh ignores SIGTERM

    def active_jobs(self, mark: str) -> dict[str, str]:
        try:
            jobs = ET.fromstring(run_scheduler_command(["qstat", "-xml"])).iter("job_list")
        except ET.ParseError as e:
            raise ClusterError(f"qstat -xml: {e}") from None
        # A deleted job stays listed, with state d, while its host is unreachable.
        listed = {
            job.findtext("JB_job_number", ""): job.findtext("JB_name", "")
            for job in jobs
            if "d" not in job.findtext("state", "")
        }
        return {number: name for number, name in listed.items() if name.endswith(mark)}

    def cancel(self, numbers: Sequence[str]) -> None:
        if numbers:
            run_scheduler_command(["qdel", *numbers])
