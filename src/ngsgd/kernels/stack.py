"""The way through a network of affine layers and back: compiled for floats on a CPU.

For whatever else, the callers have PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ngsgd.kernels import native
from ngsgd.kernels.native import library, lie_in_rows, serves
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
        chosen: (P, K), int64, of a layer above the lowest one: for each of P positions of an example those below that
            are put side by side, each of which there is. None: so many as make an input, in their order.
    """

    weight: Tensor
    bias: Tensor
    norm: Norm | None
    chosen: Tensor | None = None


class Base(NamedTuple):
    """What stands below the lowest layer and is not trained.

    Attributes:
        chosen: (P, K), int64: for each of P positions of an example the frames that are put side by side, each of which
            it has. None: x is taken as it is.
        weight, bias: (D_1, K D) and (D_1,), by which these are multiplied; or both None.
    """

    chosen: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class Top(NamedTuple):
    """What stands above the uppermost layer: the softmax, and how good it is.

    Attributes:
        scales: (C,), by which z is multiplied first, or None.
        labels: (N,), int64, the class of each row.
    """

    scales: Tensor | None
    labels: Tensor


class Passed(NamedTuple):
    """What the way there and back has brought.

    Attributes:
        loss: minus the log posteriors of the labels, summed.
        correct: how many labels are the likeliest class, the first one of several.
        rows: for each layer the rows of its input, with a 1 after each, (N, D_in + 1), and the derivative at z,
            (N, D_out).
    """

    loss: float
    correct: int
    rows: list[tuple[Tensor, Tensor]]


def there_and_back(x: Tensor, layers: Sequence[AffineLayer], base: Base, top: Top) -> Passed | None:
    """Passes x through a network and back to its lowest layer; None where it is not for the compiled functions.

    Args:
        x: (..., D_in), or (B, T, D) where the base chooses frames.
        layers: from the lowest on; the uppermost one has no norms.
        base: what stands below them.
        top: what stands above them.

    Raises:
        IndexError: a label is no class.
    """
    size, count, B = x.numel(), len(layers), x.shape[0] if x.dim() else 1
    below, above = _base(x, base), _top(top)
    if below is None or above is None:
        return None
    numbers = (native.Layer * count)()
    for at, (weight, bias, norm, chosen) in zip(numbers, layers, strict=True):
        if not (lie_in_rows(weight) and are_side_by_side(weight, bias)):
            return None
        if chosen is not None:
            if not _are_numbers(chosen):
                return None
            at.chosen, (at.P, at.K) = chosen.data_ptr(), chosen.shape
        D_out, D_in = weight.shape
        k, kind = (1, 0) if norm is None else (norm.k, 1 + norm.normalized)
        at.W, at.W_stride, at.D, at.k, at.G, at.norm = weight.data_ptr(), weight.stride(0), D_in, k, D_out // k, kind
    lowest, last = numbers[0], numbers[count - 1]
    if last.norm or lowest.chosen or (below.K * below.D if base.weight is None else len(base.weight)) != lowest.D:
        return None
    total: int = library.lay(below, numbers, count, B, size, None)
    if total < 0 or len(top.labels) != last.N or (top.scales is not None and len(top.scales) != last.G):
        return None
    room = x.new_empty(total)
    library.there_and_back(below, numbers, count, above, x.data_ptr(), B, size, room.data_ptr(), NORM_FLOOR, TINY)
    if above.correct < 0:
        raise IndexError(f"a label is none of the classes, 0 to {last.G - 1}")
    start, rows = room.data_ptr(), []
    for at in numbers:
        N, D, stride, D_out = at.N, at.D + 1, at.stride, at.k * at.G
        inputs = room.as_strided((N, D), (stride, 1), (at.rows - start) // 4)
        rows.append((inputs, room.as_strided((N, D_out), (D_out, 1), (at.z - start) // 4)))
    return Passed(above.loss, above.correct, rows)


def _base(x: Tensor, base: Base) -> native.Base | None:
    """The base for the compiled functions, if they can be used on that and x."""
    chosen, weight, bias = base
    shape = x.shape
    if not (serves(x) and shape and x.numel()):
        return None
    numbers = native.Base(shape[-1], None, 1, 1, 1)
    if chosen is not None:
        if len(shape) != 3 or not _are_numbers(chosen):
            return None
        numbers.chosen, numbers.T, (numbers.P, numbers.K) = chosen.data_ptr(), shape[1], chosen.shape
    if weight is not None and bias is not None:
        if not (serves(weight) and serves(bias)) or weight.shape != (len(bias), numbers.K * numbers.D):
            return None
        numbers.W, numbers.b = weight.data_ptr(), bias.data_ptr()
    return numbers


def _top(top: Top) -> native.Top | None:
    """The top for the compiled functions, if they can be used on it."""
    scales, labels = top
    if not _are_numbers(labels):
        return None
    if scales is None:
        return native.Top(None, labels.data_ptr())
    return native.Top(scales.data_ptr(), labels.data_ptr()) if serves(scales) else None


def _are_numbers(t: Tensor) -> bool:
    """Whether the compiled functions can be used on a tensor of numbers; see `serves`."""
    return type(t) is Tensor and t.dtype is torch.int64 and t.is_cpu and t.is_contiguous()
