"""The outer step: an optimiser step over iterations, from the average of an iteration's jobs to the next model.

The change by averaging, Delta_t = mean_n(W_t^(n)) - W_t, is the step's direction:

    V_t = mu V_{t-1} + Delta_t,    W_{t+1} = W_t + eta (V_t, or Delta_t + mu V_t with Nesterov momentum).

With eta between 1 - mu and 1 this is BMUF (Chen & Huo 2016, where eta is called zeta); with Nesterov momentum,
eta = 0.7 and mu = 0.9 it is the outer step of DiLoCo (arXiv:2311.08105). Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from ngsgd.errors import ModelError
from ngsgd.network.storage import Arrays, Header, read_model, write_model
from ngsgd.training.averaging_rules import JobModels, register_averaging_rule

if TYPE_CHECKING:
    from ngsgd.training.settings import OuterStepSettings

Weights = Literal["equal", "frames", "rescaled"]
STATISTICS = ("running_mean", "running_var")  # averaged without an outer step, since they are no parameters


@register_averaging_rule("outer-step")
@dataclass(frozen=True)
class OuterStep:
    """The averaging rule ``outer-step``; its state is V_t.

    Attributes:
        lrate: eta.
        momentum: mu.
        nesterov: whether to use Nesterov momentum.
        trust_region: upper bound of a component's step length relative to its parameters' norm; None for no bound.
        weights: how the jobs are weighted in the average; see `job_weights`.
    """

    lrate: float = 1.0
    momentum: float = 0.0
    nesterov: bool = False
    trust_region: float | None = None
    weights: Weights = "equal"

    advice: ClassVar[str] = "lower outer_lrate or outer_momentum"

    @classmethod
    def from_settings(cls, s: OuterStepSettings) -> OuterStep:
        return cls(s.outer_lrate, s.outer_momentum, s.outer_nesterov, s.outer_trust_region, s.job_weights)

    @property
    def has_state(self) -> bool:
        return self.momentum != 0.0

    def next_model(self, before: Arrays, jobs: JobModels, state: Arrays) -> tuple[Arrays, Arrays]:
        """Returns W_{t+1} and V_t; see `AveragingRule.next_model`."""
        weights, factor = job_weights(self.weights, jobs.frames)
        average = jobs.mean(weights)
        if factor != 1.0:
            average = scale_change(before, average, factor)
        return (average, {}) if self.is_average else apply_outer_step(before, average, state, self)

    @property
    def is_average(self) -> bool:
        """Whether the next model is the average itself."""
        return self.lrate == 1.0 and self.momentum == 0.0 and self.trust_region is None


def job_weights(kind: Weights, frames: Sequence[int]) -> tuple[list[float] | None, float]:
    """Returns the weights of the jobs' models, None if all are 1 / N, and a factor for the change by averaging.

    Args:
        kind: ``frames`` weights in proportion to the frames that a job was trained on, so that each frame counts alike;
            ``rescaled`` in inverse proportion, as if each job had been trained on the same number of frames.
        frames: number of frames that each job was trained on.

    Raises:
        ModelError: a job was trained on no frame.
    """
    if kind == "equal" or len(set(frames)) == 1:
        return None, 1.0
    if min(frames) <= 0:
        raise ModelError(f"job_weights: {kind}: a job was trained on no frame; leave it out with min_jobs")
    if kind == "frames":
        return [f / sum(frames) for f in frames], 1.0
    expected = sum(frames) / len(frames)
    weights = [expected / f / len(frames) for f in frames]
    return [weight / sum(weights) for weight in weights], sum(weights)


def scale_change(before: Arrays, average: Arrays, factor: float) -> Arrays:
    """Returns the average with its change from W_t multiplied by a factor; running statistics stay as they are."""
    return {
        name: array
        if name.endswith(STATISTICS) or name not in before
        else (before[name] + factor * (array.astype(np.float64) - before[name])).astype(array.dtype)
        for name, array in average.items()
    }


@np.errstate(over="ignore", invalid="ignore")  # `end_iteration` reports parameters that are not finite
def apply_outer_step(before: Arrays, average: Arrays, momentum: Arrays, step: OuterStep) -> tuple[Arrays, Arrays]:
    """Returns W_{t+1} and V_t.

    Args:
        before: W_t.
        average: of the jobs' models. Arrays that W_t lacks, those of a new layer, are taken unchanged.
        momentum: V_{t-1}; missing arrays count as 0.
        step: the settings.
    """
    after, velocity, moves = dict(average), {}, dict[str, npt.NDArray[np.float64]]()
    for name, mean in average.items():
        if name.endswith(STATISTICS) or name not in before or before[name].shape != mean.shape:
            continue
        delta = mean.astype(np.float64) - before[name]
        v = delta if name not in momentum else step.momentum * momentum[name].astype(np.float64) + delta
        moves[name] = step.lrate * (delta + step.momentum * v if step.nesterov else v)
        velocity[name] = v.astype(mean.dtype)
    for component in sorted({_component(name) for name in moves}):
        own = [name for name in sorted(moves) if _component(name) == component]
        scale = _scale(before, moves, own, step.trust_region)
        for name in own:
            after[name] = (before[name] + scale * moves[name]).astype(average[name].dtype)
    return after, velocity if step.momentum else {}


def _component(name: str) -> str:
    return name.rpartition(".")[0]


def _scale(before: Arrays, moves: Mapping[str, Any], own: Sequence[str], trust_region: float | None) -> float:
    if trust_region is None:
        return 1.0
    norm = sum(float(np.square(before[name], dtype=np.float64).sum()) for name in own) ** 0.5
    length = sum(float(np.square(moves[name]).sum()) for name in own) ** 0.5
    # Parameters that are all 0, as a new layer's biases may be, would never change if their step were bounded.
    return min(1.0, trust_region * norm / length) if norm and length else 1.0


def write_momentum(path: str | os.PathLike[str], momentum: Arrays, header: Header) -> None:
    """Writes V_t, with the header of the model W_{t+1}.

    Raises:
        OSError: the file cannot be written.
    """
    write_model(path, momentum, header)


def read_momentum(path: str | os.PathLike[str], model: str | os.PathLike[str], header: Header) -> Arrays:
    """Reads V_t of the iteration that ended with a model.

    Args:
        path: of the momentum's file.
        model: path of the model W_{t+1}, for errors.
        header: of that model.

    Raises:
        ModelError: the momentum is missing or damaged, or belongs to another model.
    """
    hint = (
        f"; delete {os.fspath(model)}, and those before it whose momenta are missing too, and run again: only the "
        "averages are repeated, not the jobs"
    )
    if not Path(path).exists():
        raise ModelError(f"{os.fspath(path)}: the momentum of {os.fspath(model)} is missing{hint}")
    momentum, own = read_model(path)
    if own != header:
        raise ModelError(f"{os.fspath(path)}: not the momentum of {os.fspath(model)}{hint}")
    return momentum
