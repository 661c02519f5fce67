"""Jobs on Grid Engine: each is a ``qrsh``, which waits for it. ``qsub -sync y`` hears of its end a second later."""

from __future__ import annotations

import re
import shlex
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ngsgd.clusters.cluster import End, Needs
from ngsgd.clusters.commands import ask
from ngsgd.errors import ClusterError

# What qrsh says where the master is away.
ABSENT = r"unable to (send message to|contact) qmaster"
NO_MEMORY = r"MemoryError|[Cc]annot allocate memory|can't allocate memory"


@dataclass(frozen=True)
class GridEngine:
    """Jobs by the names that a site has for what they need; where they differ, the profile says so.

    Attributes:
        memory: resource that is asked for memory, for each thread.
        gpu: consumable resource that is asked for GPUs.
        parallel_environment: with its slots on one host.
    """

    lists_all: ClassVar[bool] = True
    memory: str = "mem_free"
    gpu: str = "gpu"
    parallel_environment: str = "smp"

    def command(self, name: str, needs: Needs, script: str) -> list[str]:
        asked = ["qrsh", "-now", "no", "-noshell", "-V", "-cwd", "-N", name]
        if needs.threads > 1:
            asked += ["-pe", self.parallel_environment, str(needs.threads)]
        if needs.mem_mb is not None:
            asked += ["-l", f"{self.memory}={-(-needs.mem_mb // needs.threads)}M"]
        if needs.runtime is not None:
            asked += ["-l", f"h_rt={60 * needs.runtime}"]
        if needs.gres or needs.gpus:
            asked += ["-l", needs.gres or f"{self.gpu}={needs.gpus}"]
        if needs.partition:
            asked += ["-q", needs.partition]
        if needs.account:
            asked += ["-P", needs.account]
        return [*asked, *shlex.split(needs.extra), "bash", "-c", script]

    def environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        return dict(environment)

    def end(self, said: str, seconds: float | None, needs: Needs) -> End:
        if seconds is None and re.search(ABSENT, said):
            return End("Grid Engine's master did not answer", transient=True)
        if re.search(NO_MEMORY, said):
            return End("it used more memory than it had asked for", "memory")
        if needs.runtime is not None and seconds is not None and seconds >= 60 * needs.runtime - 1:
            return End("it reached its limit of time", "time")
        return End(" ".join(said.split()) or "it was cancelled, or killed")

    def last_order(self, mark: str) -> list[str]:
        return ["qdel", f"*{mark}"]  # those that are pending

    def under_way(self, mark: str) -> dict[str, str]:
        try:
            jobs = ET.fromstring(ask(["qstat", "-xml"])).iter("job_list")
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
            ask(["qdel", *numbers])
