"""An affine layer forwards, and its step: compiled for floats on a CPU. For whatever else, the callers have PyTorch."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ngsgd.kernels.native import Side, library, lie_in_rows, serves
from ngsgd.kernels.rows import NORM_FLOOR, TINY, room_for_rows


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
        side: the same for the compiled functions; None where it is not for them.
    """

    x_hat: Rows
    lengths: Tensor
    traces: Tensor
    side: Side | None = None


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


class Passed(NamedTuple):
    """What the compiled forward pass of an affine layer leaves for the way back.

    Attributes:
        rows: those of x with a 1 after each, (N, D_in + 1).
        z: W x + b, (..., D_out).
        y: the norms, (..., G), or None.
        scale: what each row of norms was multiplied by (...), as `two_norm` gives it, or None.
    """

    rows: Tensor
    z: Tensor
    y: Tensor | None
    scale: Tensor | None


def affine(x: Tensor, weight: Tensor, bias: Tensor, norm: Norm | None) -> Passed | None:
    """z = W x + b, and its norms if any; None where it is not for the compiled functions.

    Args:
        x: (..., D_in).
        weight: W, (D_out, D_in).
        bias: b, (D_out,).
        norm: what is to be made of z.
    """
    fits = x.dim() > 0 and x.shape[-1] == weight.shape[1]  # else the operators say what is wrong
    if not (fits and serves(x) and lie_in_rows(weight) and are_side_by_side(weight, bias)):
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
        _address(y), _address(scale), NORM_FLOOR,
    )  # fmt: skip
    return Passed(rows, z, y, scale)


def affine_derivative(
    dy: Tensor,
    weight: Tensor,
    z: Tensor | None,
    y: Tensor | None,
    scale: Tensor | None,
    norm: Norm | None,
    wanted: bool,
) -> tuple[Tensor, Tensor | None]:
    """The derivatives at z (..., D_out), which overwrites it where there are norms, and at x, if wanted.

    Args:
        dy: the derivative at what came out of the layer, (..., G) or (..., D_out).
        weight: W, (D_out, D_in).
        z, y, scale: what `affine` has given; of no use without norms.
        norm: as `affine` was given it.
        wanted: whether the derivative at x is.
    """
    dy = dy.contiguous()
    places, (D_out, D_in) = dy.shape[:-1], weight.shape
    N, k = math.prod(places), 1 if norm is None else norm.k
    dz = dy if z is None else z
    dx = dy.new_empty(*places, D_in) if wanted else None
    factor = None if z is None else dy.new_empty(D_out // k)
    library.affine_derivative(
        _address(z), _address(y), _address(scale), dy.data_ptr(), _address(factor), N, k, D_out // k, NORM_FLOOR, TINY,
        dz.data_ptr(), weight.data_ptr(), weight.stride(0), _address(dx), D_in,
    )  # fmt: skip
    if z is not None:
        increment_version(z)
    return dz, dx


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def measured(x: Tensor, W: Tensor | None = None, shrunk: Tensor | None = None) -> Preconditioned:
    """X^ = X - H W with H = X W^T (or X^ = X), not formed, but measured: |x^|^2 = |x|^2 - sum_r (2 - e_r) h_r^2.

    Args:
        x: (N, D), X.
        W: (R, D), of orthogonal rows.
        shrunk: (R,), 2 - e, of which e holds the squared lengths of the rows of W.
    """
    if W is None or shrunk is None:
        W = shrunk = None
    if not (lie_in_rows(x) and (W is None or shrunk is None or serves(W, shrunk))):
        before = torch.linalg.vecdot(x, x)
        if W is None or shrunk is None:
            return Preconditioned(Rows(x), before.sqrt(), x.new_ones(2))
        H = torch.mm(x, W.t())
        after = (before - torch.mv(H.square(), shrunk)).clamp_(min=0.0)
        return Preconditioned(Rows(x, H, W), after.sqrt(), torch.stack((before.sum(), after.sum())))
    (N, D), R = x.shape, 0 if W is None else W.shape[0]
    low_rank = None if W is None else x.new_empty(N, R)
    lengths, traces = x.new_empty(N), x.new_empty(2)
    side = Side(x.data_ptr(), D, x.stride(0), _address(low_rank), _address(W), R, lengths.data_ptr(), traces.data_ptr())
    library.measure(side, _address(shrunk), N)
    if W is None:
        traces.fill_(1.0)  # gamma is 1, however large the rows
    return Preconditioned(Rows(x, low_rank, W), lengths, traces, side)


def descend(
    weight: Tensor, bias: Tensor | None, x: Preconditioned, y: Preconditioned, rate: float, m: float
) -> bool | None:
    """W,b <- W,b - s Y^^T X^ with s = rate gamma_x gamma_y, or less where the step would go further than m N.

    Args:
        weight: W, (D_out, D_in).
        bias: b, (D_out,).
        x: X^, (N, D_in + 1).
        y: Y^, (N, D_out).
        rate: learning rate.
        m: at most so far a row; 0 for any.

    Returns:
        Whether the step was shortened; None where it is not for the compiled functions, and was not made.

    Raises:
        MemoryError: there is none.
    """
    if x.side is None or y.side is None or bias is None or not are_side_by_side(weight, bias):
        return None
    if weight.shape[1] + 1 != x.side.D or not lie_in_rows(weight):
        return None
    limited: int = library.descend(x.side, y.side, weight.data_ptr(), weight.stride(0), x.lengths.shape[0], rate, m)
    if limited < 0:
        raise MemoryError("natural gradient: no memory for the rows of a minibatch")
    # What autograd has kept of them is of no use any more, and it is to know that.
    increment_version(weight)
    increment_version(bias)
    return bool(limited)
