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
    """What has come out of layers, and the memory of what lies in between.

    Attributes:
        y: the uppermost one's norms, (..., G), or z = W x + b, (..., D_out).
        room: for all that the way back needs.
    """

    y: Tensor
    room: Tensor


def forwards(x: Tensor, layers: Sequence[AffineLayer]) -> Passed | None:
    """Passes x through layers that stand one above the other; None where it is not for the compiled functions.

    Args:
        x: (..., D_in).
        layers: from the lowest on. So many outputs of one as make an input of the next are put side by side.
    """
    size, shape = x.numel(), x.shape
    if not (size and serves(x) and shape and shape[-1] == layers[0].weight.shape[1]):
        return None
    if not all(lie_in_rows(weight) and are_side_by_side(weight, bias) for weight, bias, _ in layers):
        return None
    count, numbers = len(layers), _numbers([weight for weight, _, _ in layers], [norm for _, _, norm in layers])
    total: int = library.lay(numbers, count, size, None, None)
    if total < 0:
        return None
    *places, _ = shape
    below, above, G = numbers[0].N, numbers[count - 1].N, numbers[count - 1].G
    if below != above:
        if not places or places[-1] * above % below:
            return None
        places[-1] = places[-1] * above // below
    room, y = x.new_empty(total), x.new_empty(*places, G)
    library.forwards(numbers, count, x.data_ptr(), size, room.data_ptr(), y.data_ptr(), NORM_FLOOR)
    return Passed(y, room)


def backwards(
    room: Tensor,
    y: Tensor | None,
    weights: Sequence[Tensor],
    norms: Sequence[Norm | None],
    size: int,
    dy: Tensor,
    dx: Tensor | None,
) -> list[tuple[Tensor, Tensor]]:
    """The way back through layers, which overwrites what lies in the room, but for one layer without norms.

    Args:
        room: as the way forwards has left it.
        y: what has come out there, if the uppermost layer has norms; of no use else.
        weights: W of each layer, as they were.
        norms: of each layer.
        size: the number of x's numbers.
        dy: the derivative at y.
        dx: where the derivative at x is to go; None where it is not wanted.

    Returns:
        For each layer the rows of its input, with a 1 after each, (N, D_in + 1), and the derivative at z, (N, D_out).
    """
    # Those who keep tensors for the way back may give others of the same values.
    room, dy = room.contiguous(), dy.contiguous()
    y = None if y is None else y.contiguous()
    weights = [weight if lie_in_rows(weight) else weight.contiguous() for weight in weights]
    count, numbers = len(weights), _numbers(weights, norms)
    library.lay(numbers, count, size, room.data_ptr(), None if y is None else y.data_ptr())
    to = None if dx is None else dx.data_ptr()
    library.backwards(numbers, count, dy.data_ptr(), to, NORM_FLOOR, TINY)
    if count > 1 or norms[0] is not None:
        increment_version(room)

    def matrix(at: int, D: int, stride: int) -> Tensor:
        begin = room.storage_offset() + (at - room.data_ptr()) // room.itemsize
        return room.as_strided((layer.N, D), (stride, 1), begin)

    seen: list[tuple[Tensor, Tensor]] = []
    dz_above = None
    for layer in reversed(numbers):
        D_out = layer.k * layer.G
        dz_at = layer.z if layer.norm else dz_above
        dz = dy.view(layer.N, D_out) if dz_at is None else matrix(dz_at, D_out, D_out)
        seen.append((matrix(layer.rows, layer.D + 1, layer.stride), dz))
        dz_above = layer.dx
    return seen[::-1]


def _numbers(weights: Sequence[Tensor], norms: Sequence[Norm | None]) -> Any:
    """The layers for the compiled functions."""
    numbers = (Layer * len(weights))()
    for at, weight, norm in zip(numbers, weights, norms, strict=True):
        at.W, at.W_stride, (D_out, at.D) = weight.data_ptr(), weight.stride(0), weight.shape
        at.k, at.norm = (1, 0) if norm is None else (norm.k, 1 + norm.normalized)
        at.G = D_out // at.k
    return numbers
