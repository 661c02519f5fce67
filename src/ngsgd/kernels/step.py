"""The step of affine layers: compiled for floats on a CPU. For whatever else, the callers have PyTorch."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ngsgd.kernels.fisher import Given, Pending, Renewed
from ngsgd.kernels.native import Side, Step, library, lie_in_rows, serves
from ngsgd.kernels.rows import room_for_rows


class Preconditioned:
    """The rows of a minibatch, preconditioned: X^ = X - H W with H = X W^T, or X itself.

    X^ need not be formed to be measured and multiplied. What is made of X is made when it is asked for, if the step of
    the layer has not made it.

    Attributes:
        X: (N, D).
        W: (R, D), of orthogonal rows, or None.
        shrunk: (R,), 2 - e, of which e holds the squared lengths of the rows of W; or None. Both lie where X does.
        given: where the estimate that W is part of is due to be renewed what there is beside these; or None.
    """

    def __init__(
        self, X: Tensor, W: Tensor | None = None, shrunk: Tensor | None = None, given: Given | None = None
    ) -> None:
        self.X, self.W, self.shrunk, self.given = X, W, shrunk, given
        self._made: tuple[Side, Tensor] | None = None
        self._pending: Pending | None = None

    def fits(self) -> bool:
        """Whether the compiled functions can be used on it."""
        X, W = self.X, self.W
        return lie_in_rows(X) and (W is None or (W.dtype is X.dtype and W.is_contiguous()))

    def give(self, side: Side) -> None:
        """Tells the compiled functions where it is."""
        X, W = self.X, self.W
        side.X, side.D, side.stride = X.data_ptr(), X.shape[1], X.stride(0)
        if W is not None and self.shrunk is not None:
            side.W, side.R, side.shrunk = W.data_ptr(), W.shape[0], self.shrunk.data_ptr()
            if self.given is not None:
                self._pending = Pending(W, self.given)
                side.renewal = ctypes.addressof(self._pending.numbers)

    def take(self, side: Side, room: Tensor) -> None:
        """Takes what they have made of it, somewhere in the room."""
        self._made = side, room

    def renewed(self) -> Renewed | None:
        """The estimate, if it was due and the step of the layer has renewed it.

        Raises:
            FloatingPointError: the rows hold a value that is not finite, or so large that its square is not.
            MemoryError: there is none.
        """
        return None if self._made is None or self._pending is None else self._pending.made()

    @functools.cached_property
    def H(self) -> Tensor | None:
        """(N, R), or None where X^ = X."""
        if self.W is None:
            return None
        if self._made is None:
            return torch.mm(self.X, self.W.t())
        side, room = self._made
        N, R = self.X.shape[0], self.W.shape[0]
        return room.as_strided((N, R), (R, 1), (side.H - room.data_ptr()) // room.itemsize)

    @functools.cached_property
    def _measures(self) -> tuple[Tensor, Tensor]:
        X = self.X
        if self._made is not None:
            side, room = self._made
            begin = room.data_ptr()
            lengths, traces = ((at - begin) // room.itemsize for at in (side.lengths, side.traces))
            return room.as_strided((X.shape[0],), (1,), lengths), room.as_strided((2,), (1,), traces)
        before = torch.linalg.vecdot(X, X)
        if self.H is None or self.shrunk is None:
            return before.sqrt(), X.new_ones(2)
        # |x^|^2 = |x|^2 - sum_r (2 - e_r) h_r^2
        after = (before - torch.mv(self.H.square(), self.shrunk)).clamp_(min=0.0)
        return after.sqrt(), torch.stack((before.sum(), after.sum()))

    @property
    def lengths(self) -> Tensor:
        """(N,), of the rows of X^."""
        return self._measures[0]

    @property
    def traces(self) -> Tensor:
        """tr(X X^T) and tr(X^ X^^T), (2,); both 1 where X^ = X: gamma is 1, however large the rows."""
        return self._measures[1]

    def formed(self) -> Tensor:
        """X^, (N, D), not rescaled."""
        if self.H is None or self.W is None:
            return self.X
        return torch.addmm(
            self.X, self.H, self.W, alpha=-1, out=room_for_rows(self.X.shape[0], self.X.shape[1], self.X)
        )


def are_side_by_side(weight: Tensor, bias: Tensor) -> bool:
    """Whether b (D_out) lies in memory as one more column of W (D_out, D_in)."""
    stride, D_in = bias.stride(0), weight.shape[1]
    return weight.data_ptr() + D_in * bias.itemsize == bias.data_ptr() and weight.stride(0) == stride > D_in


def side_by_side(weight: Tensor, bias: Tensor) -> Tensor | None:
    """W (D_out, D_in) and b (D_out) as one matrix (D_out, D_in + 1), where they lie so."""
    if not are_side_by_side(weight, bias):
        return None
    D_out, D_in = weight.shape
    return weight.detach().as_strided((D_out, D_in + 1), (weight.stride(0), 1))


class Trained(NamedTuple):
    """A layer, and what its step is made of.

    Attributes:
        weight: W, (D_out, D_in).
        bias: b, (D_out,), or None.
        x: X^, (N, D_in + 1); without a bias, (N, D_in).
        y: Y^, (N, D_out).
    """

    weight: Tensor
    bias: Tensor | None
    x: Preconditioned
    y: Preconditioned


def descend(layers: Sequence[Trained], rate: float, m: float) -> list[bool | None]:
    """W,b <- W,b - s Y^^T X^ with s = rate gamma_x gamma_y, or less where the step would go further than m N.

    Estimates that are due are renewed then, see `Preconditioned.renewed`.

    Args:
        layers: they, and what the steps are made of.
        rate: learning rate.
        m: at most so far a row; 0 for any.

    Returns:
        For each layer whether the step was shortened; None where it is not for the compiled functions, and not made.
    """
    served = [_fits(layer) for layer in layers]
    ours = [layer for layer, serves_it in zip(layers, served, strict=True) if serves_it]
    if not ours:
        return [None] * len(layers)
    steps, spare = (Step * len(ours))(), ctypes.c_long()
    changed = []
    for step, (weight, bias, x, y) in zip(steps, ours, strict=True):
        x.give(step.x)
        y.give(step.y)
        step.N = x.X.shape[0]
        step.W, step.stride, step.columns = weight.data_ptr(), weight.stride(0), x.X.shape[1]
        changed.append(weight)
        if bias is not None:
            changed.append(bias)
            if not are_side_by_side(weight, bias):
                step.b = bias.data_ptr()
                step.columns -= 1
    size: int = library.lay_steps(steps, len(ours), None, spare)
    room = ours[0].x.X.new_empty(size + spare.value)
    library.descend(steps, len(ours), room.data_ptr(), rate, m)
    # What autograd has kept of them is of no use any more, and it is to know that.
    increment_version(changed)
    limited = []
    for step, (_, _, x, y) in zip(steps, ours, strict=True):
        if step.N:
            for side, numbers in ((x, step.x), (y, step.y)):
                if m > 0.0 or side.W is not None:  # else it has not been measured
                    side.take(numbers, room)
        limited.append(bool(step.limited))
    made = iter(limited)
    return [next(made) if serves_it else None for serves_it in served]


def _fits(layer: Trained) -> bool:
    weight, bias, x, y = layer
    (D_out, D_in), N = weight.shape, x.X.shape[0]
    if not (lie_in_rows(weight) and x.fits() and y.fits()):
        return False
    if x.X.shape[1] != D_in + (bias is not None) or y.X.shape != (N, D_out):
        return False
    return bias is None or are_side_by_side(weight, bias) or serves(bias.detach())
