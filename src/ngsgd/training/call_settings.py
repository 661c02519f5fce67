"""Settings of a whole call, not of a run. No model depends on them, except through lost jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ngsgd.declare import setting
from ngsgd.errors import ConfigError


@dataclass(frozen=True)
class ModelRetention:
    """Rule for which iterations' models are kept. If both attributes are None, all are kept, and the jobs' models too.

    Attributes:
        last: number of last models to keep; None for none.
        every: keeps the models whose number is a multiple of this; None for none.
    """

    last: int | None = None
    every: int | None = None

    @property
    def all(self) -> bool:
        return self.last is None and self.every is None

    def keeps(self, x: int, newest: int) -> bool:
        """Returns whether model x is kept when the newest model is ``newest``."""
        return (
            self.all
            or (self.last is not None and x > newest - self.last)
            or (self.every is not None and x % self.every == 0)
        )


#: The rules whose jobs may be given cluster resources.
RULES = (
    "prepare_part", "assemble", "transform", "distribute", "shuffle", "sample", "train", "diagnose", "adjust_priors",
    "align", "relabel", "relabel_diagnostics", "combine", "graph", "decode", "evaluate",
)  # fmt: skip

#: Values of size and time as Snakemake reads them in a profile; 0 and null ask for nothing.
MEMORY: dict[str, Any] = {
    "type": ["integer", "string", "null"],
    "minimum": 0,
    "pattern": r"^\d+(\.\d+)?\s*([kKMGT](i?B)?)?$",
    "description": "a number of megabytes, or a size such as 8GB",
}
TIME: dict[str, Any] = {
    "type": ["integer", "string", "null"],
    "minimum": 0,
    "pattern": r"^\d+(\.\d+)?\s*[smhdw]?$",
    "description": "a number of minutes, or a time such as 2h",
}
RESOURCES_SCHEMA = {
    "type": "object",
    "propertyNames": {"enum": list(RULES)},
    "additionalProperties": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "mem_mb": MEMORY,
            "mem": MEMORY,
            "runtime": TIME,
            **{name: {"type": "integer", "minimum": 1} for name in ("mem_mb_per_cpu", "cpus_per_task")},
            "gpus": {"type": "integer", "minimum": 0},
            **{
                name: {"type": "string"}
                for name in ("gpu_model", "gres", "partition", "account", "constraint", "qos", "reservation", "extra")
            },
        },
    },
}


@dataclass(frozen=True)
class CallSettings:
    """The call

    These settings apply to all runs of a call. Changing them makes no file again.
    """

    min_jobs: int | None = setting(
        None,
        "Minimum number of jobs with which an iteration goes on, at most as many as it has; null for all. A job that "
        "has failed in all its attempts is then lost, and later jobs train on its data (`docs/clusters.md`).",
        stage="none", minimum=1,
    )  # fmt: skip
    straggler_timeout: float | None = setting(
        None,
        "On clusters, time that an iteration with `min_jobs` models waits for one more before it goes on; null for "
        "no limit.",
        stage="none", minimum=0, unit="seconds",
    )  # fmt: skip
    keep_last_models: int | None = setting(
        None,
        "How many of the last models of iterations are kept. Others that `keep_every_model` does not keep, and the "
        "jobs' models, are removed as soon as nothing needs them. null for both: all are kept.",
        stage="none", minimum=1,
    )  # fmt: skip
    keep_every_model: int | None = setting(
        None, "Models of iterations whose number is a multiple of this are kept.", stage="none", minimum=1
    )
    keep_examples: bool = setting(
        True, "Whether the archives of examples are kept when all runs are finished.", stage="none"
    )
    resources: Mapping[str, Mapping[str, Any]] = setting(
        {},
        "Cluster resources of the jobs of a rule: `mem_mb` or `mem`, `mem_mb_per_cpu`, `runtime` (minutes, or `2h`), "
        "`cpus_per_task`, `gpus`, `gpu_model`, `gres`, `partition`, `account`, `constraint`, `qos`, `reservation`, "
        "`extra`, as in `resources: {train: {mem: 8GB, partition: gpu}}` (`docs/clusters.md`).",
        stage="none", schema=RESOURCES_SCHEMA,
    )  # fmt: skip

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> CallSettings:
        """Takes these settings from a configuration that `run_settings` has checked.

        Raises:
            ConfigError: ``straggler_timeout`` is set without ``min_jobs``, or a resource twice.
        """
        execution = cls(**{field.name: config[field.name] for field in fields(cls)})
        if execution.straggler_timeout is not None and execution.min_jobs is None:
            raise ConfigError("straggler_timeout: needs min_jobs, without which an iteration waits for all its jobs")
        for rule, resources in execution.resources.items():
            if {"mem", "mem_mb"} <= resources.keys():
                raise ConfigError(f"resources: {rule}: mem and mem_mb are two names of the same: give one of them")
        return execution

    @property
    def model_retention(self) -> ModelRetention:
        """Returns the rule for which models are kept."""
        return ModelRetention(self.keep_last_models, self.keep_every_model)


CALL_SETTINGS = {field.name for field in fields(CallSettings)}
