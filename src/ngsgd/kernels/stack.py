"""The way through affine layers that stand one above the other, and back: compiled for floats on a CPU.

For whatever else, the callers have PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd.graph import increment_version

from ngsgd.kernels.native import Layer, library, lie_in_rows, serves
from ngsgd.kernels.rows import NORM_FLOOR, TINY
from ngsgd.kernels.step import are_side_by_side


class Norm(NamedTuple):
    """What an affine layer makes of its outputs: 2-norms of groups whose members lie D_out / k apart.

    Attributes:
        k: the number of a group's members.
        normalized: whether the norms are brought to root-mean-square 1.
    """

    k: int
    normalized: bool


class AffineLayer(NamedTuple):
    """One that is trained.

    Attributes:
        weight: W, (D_out, D_in).
        bias: b, (D_out,).
        norm: what is made of the outputs.
    """

    weight: Tensor
    bias: Tensor
    norm: Norm | None


class Passed(NamedTuple):
    """What has come out of layers, and what the way back needs.

    Attributes:
        y: the uppermost one's norms, (..., G), or z = W x + b, (..., D_out).
        room: memory for all that lies between x and y.
        numbers: what lies where.
    """

    y: Tensor
    room: Tensor
    numbers: Any


class Layers:
    """Affine layers one above the other: so many outputs of one as make an input of the next are put side by side."""

    def __init__(self, layers: Sequence[AffineLayer]) -> None:
        """They are given from the lowest on."""
        self._serves = all(lie_in_rows(at.weight) and are_side_by_side(at.weight, at.bias) for at in layers)
        self._numbers = (Layer * len(layers))()
        for at, (weight, _, norm) in zip(self._numbers, layers, strict=True):
            at.W, at.W_stride, (D_out, at.D) = weight.data_ptr(), weight.stride(0), weight.shape
            at.k, at.norm = (1, 0) if norm is None else (norm.k, 1 + norm.normalized)
            at.G = D_out // at.k
        self._addresses = [(p, p.data_ptr()) for weight, bias, _ in layers for p in (weight, bias)]
        self._size, self._total, self._rows = 0, 0, (1, 1)

    def forwards(self, x: Tensor) -> Passed | None:
        """Passes x (..., D_in) through the layers; None where it is not for the compiled functions."""
        numbers, size = type(self._numbers).from_buffer_copy(self._numbers), x.numel()
        if not (self._serves and size and serves(x) and x.shape and x.shape[-1] == numbers[0].D):
            return None
        if any(parameter.data_ptr() != address for parameter, address in self._addresses):
            return None  # somebody has laid them elsewhere
        count, above = len(numbers), numbers[-1]
        if size != self._size:
            self._size, self._total = size, library.lay(numbers, count, size, None, None)
            self._rows = numbers[0].N, above.N
        if self._total < 0:
            return None
        *places, _ = x.shape
        if count > 1:
            below, end = self._rows
            places[-1] = places[-1] * end // below
        room, y = x.new_empty(self._total), x.new_empty(*places, above.G)
        library.forwards(numbers, count, x.data_ptr(), size, room.data_ptr(), y.data_ptr(), NORM_FLOOR)
        return Passed(y, room, numbers)


def backwards(room: Tensor, numbers: Any, dy: Tensor, dx: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """The way back through layers, which overwrites what lies in the room.

    Args:
        room, numbers: as the way forwards has given them, its y being still there if the uppermost layer has norms.
        dy: the derivative at y.
        dx: where the derivative at x is to go; None where it is not wanted.

    Returns:
        For each layer the rows of its input, with a 1 after each, (N, D_in + 1), and the derivative at z, (N, D_out).
    """
    dy = dy.contiguous()
    to = None if dx is None else dx.data_ptr()
    library.backwards(numbers, len(numbers), dy.data_ptr(), to, NORM_FLOOR, TINY)
    increment_version(room)
    begin, seen, dz_above = room.data_ptr(), [], None
    for at in reversed(numbers):
        N, D_out = at.N, at.k * at.G
        rows = room.as_strided((N, at.D + 1), (at.stride, 1), (at.rows - begin) // room.itemsize)
        dz_at = at.z if at.norm else dz_above
        if dz_at is None:
            dz = dy.view(N, D_out)
        else:
            dz = room.as_strided((N, D_out), (D_out, 1), (dz_at - begin) // room.itemsize)
        seen.append((rows, dz))
        dz_above = at.dx
    return seen[::-1]
