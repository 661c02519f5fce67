"""The averaging rules: how the models of an iteration's jobs become the next model.

To add one, write a class here or in a module of its own that ``_MODULES`` names, and register it; its name is then a
value of the setting ``averaging_rule``. Imports no torch.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from ngsgd import registry
from ngsgd.network.storage import Arrays
from ngsgd.training.model_mean import average_arrays

_MODULES = ("ngsgd.training.outer_step",)


@dataclass(frozen=True)
class JobModels:
    """The models of the jobs that an iteration uses.

    Attributes:
        paths: of the models, in the order of the jobs.
        frames: number of frames that each job was trained on.
    """

    paths: Sequence[str | os.PathLike[str]]
    frames: Sequence[int]

    def mean(self, weights: Sequence[float] | None = None) -> Arrays:
        """The mean of the models' arrays, or with weights their weighted sum; a block of each is in memory at a
        time.
        """
        return average_arrays(self.paths, weights)


class AveragingRule(Protocol):
    """From the model before an iteration and its jobs' models to the next model.

    Attributes:
        has_state: whether the rule keeps arrays from one iteration to the next.
        advice: what to change if the next model is not finite.
    """

    advice: ClassVar[str]

    @property
    def has_state(self) -> bool: ...

    def next_model(self, before: Arrays, jobs: JobModels, state: Arrays) -> tuple[Arrays, Arrays]:
        """Returns the next model and the rule's next state.

        Args:
            before: the model that the jobs started from.
            jobs: the jobs' models.
            state: what the rule returned in the iteration before; empty in the first iteration, and after an iteration
                of which the best model was taken.

        Raises:
            ModelError: a model cannot be read.
        """


RuleType = TypeVar("RuleType", bound=Callable[..., Any])

_rules: dict[str, Any] = {}


def register_averaging_rule(name: str) -> Callable[[RuleType], RuleType]:
    """Registers a class as the rule that ``averaging_rule: <name>`` selects; it has a class method
    ``from_settings``.
    """

    def register(rule: RuleType) -> RuleType:
        registry.add(_rules, name, rule)
        return rule

    return register


def averaging_rules() -> Mapping[str, Any]:
    """The registered classes by name."""
    for module in _MODULES:
        importlib.import_module(module)
    return dict(sorted(_rules.items()))


def make_averaging_rule(settings: Any) -> AveragingRule:
    """The rule that a run's settings select."""
    rule: AveragingRule = averaging_rules()[settings.averaging_rule].from_settings(settings)
    return rule
