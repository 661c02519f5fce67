"""How a call carries the runs out: settings of the whole call, on which no model depends but through what is lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ngsgd.errors import ConfigError


@dataclass(frozen=True)
class ModelRetention:
    """Which models of iterations are kept for good.

    Attributes:
        last: the last so many; None for no more than ``every`` says.
        every: those whose number it divides; None for no more than ``last`` says.

    Where both are None all are kept, and those of the jobs, too.
    """

    last: int | None = None
    every: int | None = None

    @property
    def all(self) -> bool:
        return self.last is None and self.every is None

    def keeps(self, x: int, newest: int) -> bool:
        """Whether model x is kept when the newest one is ``newest``."""
        return (
            self.all
            or (self.last is not None and x > newest - self.last)
            or (self.every is not None and x % self.every == 0)
        )


@dataclass(frozen=True)
class Execution:
    """All settings of a call that are not of a run, by the names of the configuration; see ``config/README.md``."""

    min_jobs: int | None
    straggler_timeout: float | None
    keep_last_models: int | None
    keep_every_model: int | None
    keep_examples: bool
    resources: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Execution:
        """Those of a configuration that `run_settings` has checked.

        Raises:
            ConfigError: there is a time for stragglers, but none may be lost.
        """
        made = cls(**{field.name: config[field.name] for field in fields(cls)})
        if made.straggler_timeout is not None and made.min_jobs is None:
            raise ConfigError("straggler_timeout: only with min_jobs may an iteration go on without its last jobs")
        return made

    @property
    def keeping(self) -> ModelRetention:
        """Which models are kept."""
        return ModelRetention(self.keep_last_models, self.keep_every_model)


CALL_SETTINGS = {field.name for field in fields(Execution)}
