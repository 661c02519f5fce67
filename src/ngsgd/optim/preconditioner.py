"""What the optimiser wants of a preconditioner, whichever form it has."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ngsgd.kernels.rows import room_for_rows


def at_full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A block in which autocast, where the caller has it on, does not reach."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


class Rows(NamedTuple):
    """The rows of X^ = X - H W, or of X itself. They need not be formed to be measured and multiplied.

    Attributes:
        X: (N, D).
        H: (N, R), or None.
        W: (R, D), or None.
    """

    X: Tensor
    H: Tensor | None = None
    W: Tensor | None = None

    def formed(self) -> Tensor:
        """X^, (N, D)."""
        if self.H is None or self.W is None:
            return self.X
        return torch.addmm(self.X, self.H, self.W, alpha=-1, out=room_for_rows(len(self.X), self.X.shape[1], self.X))


class Preconditioned(NamedTuple):
    """The rows of a minibatch, preconditioned.

    Attributes:
        x_hat: X^, not rescaled.
        lengths: (N,) of its rows.
        traces: tr(X X^T) and tr(X^ X^^T), (2,); see `scales`.
    """

    x_hat: Rows
    lengths: Tensor
    traces: Tensor


def scales(before: Tensor, after: Tensor) -> Tensor:
    """gamma = sqrt(tr(X X^T) / tr(X^ X^^T)), 1 where the denominator is 0."""
    return torch.where(after == 0, 1.0, before / after).sqrt_()


def unchanged(x_hat: Tensor) -> Preconditioned:
    """Rows (N, D) whose scale is 1."""
    lengths = torch.linalg.vector_norm(x_hat, dim=1)
    return Preconditioned(Rows(x_hat), lengths, x_hat.new_ones(2))


class Preconditioner(Protocol):
    """One side of one layer."""

    def apply(self, x: Tensor) -> Preconditioned:
        """Preconditions the rows of a minibatch, x (N, D)."""
