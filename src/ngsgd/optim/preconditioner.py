"""The interface of a preconditioner, as the optimiser uses it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from ngsgd.ops import PreconditionerInput, UpdatedFisher


class Preconditioner(Protocol):
    """The preconditioner of one side of one layer: of its inputs, or of the derivatives with respect to its outputs."""

    def prepare(self, x: Tensor, order: Sequence[int] | None = None) -> PreconditionerInput:
        """Returns the rows of a minibatch with the estimate that preconditions them in the layer's step.

        Args:
            x: (N, D).
            order: for each column of x its number in the model's own order, where the columns are stored in another
                one; None if that is the order.

        Raises:
            FloatingPointError: x holds values that are not finite, or overflow.
        """

    def record(self, updated: UpdatedFisher) -> None:
        """Stores the estimate that the step has updated, where `prepare` asked for an update."""


class Identity:
    """No preconditioning: X^ = X and gamma = 1, which is plain SGD."""

    def prepare(self, x: Tensor, order: Sequence[int] | None = None) -> PreconditionerInput:
        return PreconditionerInput(x)

    def record(self, updated: UpdatedFisher) -> None:
        raise AssertionError("the identity has no estimate to update")


def at_full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A block in which autocast, if the caller has enabled it, has no effect."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
