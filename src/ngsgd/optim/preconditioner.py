"""What the optimiser wants of a preconditioner, whichever form it has."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

ALIGNMENT = 16  # of a row's beginning, in numbers


def room_for_rows(N: int, D: int, like: Tensor) -> Tensor:
    """Memory for a matrix (N, D), its values arbitrary. Products of rows that begin just anywhere take longer.

    Args:
        N: number of rows.
        D: their dimension.
        like: says where they are to lie, and of which type they are.
    """
    return like.new_empty(N, -(-D // ALIGNMENT) * ALIGNMENT)[:, :D]


class Preconditioned(NamedTuple):
    """The rows of a minibatch, preconditioned.

    Attributes:
        x_hat: (N, D), not rescaled.
        lengths: (N,) of its rows.
        before: tr(X X^T), 0-d; see `scales`.
        after: tr(X^ X^^T), 0-d.
    """

    x_hat: Tensor
    lengths: Tensor
    before: Tensor
    after: Tensor


def scales(before: Tensor, after: Tensor) -> Tensor:
    """gamma = sqrt(tr(X X^T) / tr(X^ X^^T)), 1 where the denominator is 0."""
    return torch.where(after == 0, 1.0, before / after).sqrt_()


def unchanged(x_hat: Tensor) -> Preconditioned:
    """Rows (N, D) whose scale is 1."""
    lengths = torch.linalg.vector_norm(x_hat, dim=1)
    one = x_hat.new_ones(())
    return Preconditioned(x_hat, lengths, one, one)


class Preconditioner(Protocol):
    """One side of one layer."""

    def apply(self, x: Tensor) -> Preconditioned:
        """Preconditions the rows of a minibatch, x (N, D)."""
