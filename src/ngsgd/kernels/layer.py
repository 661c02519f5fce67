"""An affine layer forwards, and its step: compiled for floats on a CPU. For whatever else, the callers have PyTorch."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ngsgd.kernels.native import Side, library, lie_in_rows, serves
from ngsgd.kernels.rows import NORM_FLOOR, room_for_rows


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
        traces: tr(X X^T) and tr(X^ X^^T), (2,).
    """

    x_hat: Rows
    lengths: Tensor
    traces: Tensor


class Norm(NamedTuple):
    """What an affine layer makes of its outputs: 2-norms of groups whose members lie D_out / k apart.

    Attributes:
        k: the number of a group's members.
        normalized: whether the norms are brought to root-mean-square 1.
    """

    k: int
    normalized: bool


def are_side_by_side(weight: Tensor, bias: Tensor) -> bool:
    """Whether b (D_out) lies in memory as one more column of W (D_out, D_in)."""
    stride, D_in = weight.stride(0), weight.shape[1]
    return bias.stride(0) == stride > D_in and bias.data_ptr() == weight.data_ptr() + D_in * bias.itemsize


def side_by_side(weight: Tensor, bias: Tensor) -> Tensor | None:
    """W (D_out, D_in) and b (D_out) as one matrix (D_out, D_in + 1), where they lie so."""
    if not are_side_by_side(weight, bias):
        return None
    D_out, D_in = weight.shape
    return weight.detach().as_strided((D_out, D_in + 1), (weight.stride(0), 1))


def affine(
    x: Tensor, weight: Tensor, bias: Tensor, norm: Norm | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None] | None:
    """z = W x + b, and what follows from it; None where it is not for the compiled functions.

    Args:
        x: (..., D_in).
        weight: W, (D_out, D_in).
        bias: b, (D_out,).
        norm: what is to be made of z, if anything.

    Returns:
        The rows of x with a 1 after each (N, D_in + 1); z (..., D_out), and what `two_norm` makes of it.
    """
    if not (serves(x) and are_side_by_side(weight, bias)):
        return None
    (D_out, D_in), places = weight.shape, x.shape[:-1]
    N = math.prod(places)
    rows, z = room_for_rows(N, D_in + 1, x), x.new_empty(*places, D_out)
    y = scale = None
    k, G = 1, D_out
    if norm is not None:
        k, G = norm.k, D_out // norm.k
        y = x.new_empty(*places, G)
        scale = x.new_empty(places) if norm.normalized else None
    library.affine(
        x.data_ptr(), rows.data_ptr(), N, D_in, rows.stride(0), weight.data_ptr(), weight.stride(0), z.data_ptr(), k, G,
        None if y is None else y.data_ptr(), None if scale is None else scale.data_ptr(), NORM_FLOOR,
    )  # fmt: skip
    return rows, z, y, scale


def descend(
    weight: Tensor, bias: Tensor | None, x: Preconditioned, y: Preconditioned, rate: float, m: float
) -> bool | None:
    """W,b <- W,b - s Y^^T X^ with s = rate gamma_x gamma_y, or less where the step would go further than m N.

    Args:
        weight, bias: W (D_out, D_in) and b (D_out,).
        x: X^, (N, D_in + 1).
        y: Y^, (N, D_out).
        rate: learning rate.
        m: at most so far a row; 0 for any.

    Returns:
        Whether the step was shortened; None where it is not for the compiled functions, and was not made.

    Raises:
        MemoryError: there is none.
    """
    if bias is None or not are_side_by_side(weight, bias) or x.x_hat.X.shape[1] != weight.shape[1] + 1:
        return None
    low_rank = [part for side in (x.x_hat, y.x_hat) for part in (side.H, side.W) if part is not None]
    if not (lie_in_rows(x.x_hat.X, y.x_hat.X) and serves(x.lengths, x.traces, y.lengths, y.traces, *low_rank)):
        return None
    N = x.lengths.shape[0]
    limited: int = library.descend(_side(x), _side(y), weight.data_ptr(), weight.stride(0), N, rate, m)
    if limited < 0:
        raise MemoryError("natural gradient: no memory for the rows of a minibatch")
    return bool(limited)


def _side(given: Preconditioned) -> Side:
    (X, H, W), lengths, traces = given
    H_at, W_at, R = (None, None, 0) if H is None or W is None else (H.data_ptr(), W.data_ptr(), W.shape[0])
    return Side(X.data_ptr(), X.shape[1], X.stride(0), H_at, W_at, R, lengths.data_ptr(), traces.data_ptr())
