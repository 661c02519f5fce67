"""Settings of a whole call, not of a run. No model depends on them, except through lost jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

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


@dataclass(frozen=True)
class Execution:
    """Settings of a whole call, named as in the configuration; see ``config/README.md``."""

    min_jobs: int | None
    straggler_timeout: float | None
    keep_last_models: int | None
    keep_every_model: int | None
    keep_examples: bool
    resources: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Execution:
        """Takes these settings from a configuration that `run_settings` has checked.

        Raises:
            ConfigError: ``straggler_timeout`` is set without ``min_jobs``.
        """
        execution = cls(**{field.name: config[field.name] for field in fields(cls)})
        if execution.straggler_timeout is not None and execution.min_jobs is None:
            raise ConfigError("straggler_timeout: needs min_jobs, without which an iteration waits for all its jobs")
        return execution

    @property
    def keeping(self) -> ModelRetention:
        """Returns the rule for which models are kept."""
        return ModelRetention(self.keep_last_models, self.keep_every_model)


CALL_SETTINGS = {field.name for field in fields(Execution)}
