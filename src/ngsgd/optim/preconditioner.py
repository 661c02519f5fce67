"""What the optimiser wants of a preconditioner, whichever form it has."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from ngsgd.kernels.step import Preconditioned


def at_full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A block in which autocast, where the caller has it on, does not reach."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def scales(before: Tensor, after: Tensor) -> Tensor:
    """gamma = sqrt(tr(X X^T) / tr(X^ X^^T)), 1 where the denominator is 0."""
    return torch.where(after == 0, 1.0, before / after).sqrt_()


class Preconditioner(Protocol):
    """One side of one layer."""

    def apply(self, x: Tensor) -> Preconditioned:
        """Preconditions the rows of a minibatch, x (N, D)."""
