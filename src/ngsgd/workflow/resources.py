"""The threads and the cluster resources of the rules' jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ngsgd.training.call_settings import CallSettings
from ngsgd.training.run import Run
from ngsgd.workflow.snakemake_call import SnakemakeCall


class JobResources:
    """The functions that rules name under ``threads`` and ``resources``.

    Args:
        runs: the runs by name.
        call: the call of Snakemake.
        execution: the settings of the call.
    """

    def __init__(self, runs: Mapping[str, Run], call: SnakemakeCall, execution: CallSettings) -> None:
        self._runs, self._call, self._execution = runs, call, execution

    def threads(self, wildcards: Any) -> int:
        return self._runs[wildcards.run].settings.threads

    def attempts_left(self, wildcards: Any, attempt: int) -> int:
        """How often a job is tried again if it fails."""
        return self._call.retries + 1 - attempt

    def for_rule(self, rule: str) -> dict[str, Any]:
        """The resources that the configuration sets for a rule; the profile sets the others."""
        # Snakemake reads units in `mem` only, and takes no None.
        resources: dict[str, Any] = {
            "mem" if name == "mem_mb" and isinstance(value, str) else name: value or 0
            for name, value in self._execution.resources.get(rule, {}).items()
        }
        if rule == "train":
            resources.setdefault("gpus", self._gpus)
        return resources

    @property
    def min_jobs(self) -> dict[str, int]:
        """``min_jobs`` as a resource: a change of resources, unlike one of params, makes no file again."""
        return {"min_jobs": self._execution.min_jobs or 0}

    @property
    def keep(self) -> dict[str, int]:
        """Which models are kept, likewise; 0 for none."""
        execution = self._execution
        return {"keep_last": execution.keep_last_models or 0, "keep_every": execution.keep_every_model or 0}

    def _gpus(self, wildcards: Any) -> int:
        return int(self._runs[wildcards.run].settings.device.startswith("cuda"))
