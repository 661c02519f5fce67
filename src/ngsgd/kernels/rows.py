"""Functions of the rows of a matrix: compiled ones for floats on a CPU, PyTorch's for whatever else.

Both forms compute the same but for rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ngsgd.kernels.native import library, serves

ALIGNMENT = 16  # of a row's beginning, in numbers
NORM_FLOOR = 2.0**-66  # Kaldi's kNormFloor: the smallest mean square that `normalize` divides by
TINY = 1.0e-20  # a 2-norm that only members whose squares underflow have


def room_for_rows(N: int, D: int, like: Tensor) -> Tensor:
    """Memory for a matrix (N, D), its values arbitrary. Products of rows that begin just anywhere take longer.

    Args:
        N: number of rows.
        D: their dimension.
        like: says where they are to lie, and of which type they are.
    """
    return torch.empty_strided((N, D), (-(-D // ALIGNMENT) * ALIGNMENT, 1), dtype=like.dtype, device=like.device)


def append_ones(x: Tensor) -> Tensor:
    """The rows of x (N, D) with a 1 after each, (N, D + 1)."""
    N, D = x.shape
    rows = room_for_rows(N, D + 1, x)
    if serves(x):
        library.append_ones(x.data_ptr(), rows.data_ptr(), N, D, rows.stride(0))
    else:
        rows[:, :D] = x
        rows[:, D] = 1.0
    return rows


def two_norm(groups: Tensor, *, normalized: bool) -> tuple[Tensor, Tensor | None]:
    """The 2-norms (..., G) of groups (..., k, G), whose members lie G apart, or what `normalize` makes of these.

    Returns:
        The norms; where they are normalised, what each row of them was multiplied by, (...), as `normalize` gives it.
    """
    *N, k, G = groups.shape
    if serves(groups):
        y, scale = groups.new_empty(*N, G), groups.new_empty(N) if normalized else None
        address = None if scale is None else scale.data_ptr()
        library.two_norm(groups.data_ptr(), y.data_ptr(), address, math.prod(N), k, G, NORM_FLOOR)
        return y, scale
    # Member after member: their squares, as large as all of the input, would be memory that has to be fetched.
    first, *others = groups.unbind(-2)
    y = first * first
    for member in others:
        y.addcmul_(member, member)
    return normalize(y.sqrt_()) if normalized else (y.sqrt_(), None)


def two_norm_derivative_(groups: Tensor, y: Tensor, scale: Tensor | None, dy: Tensor) -> Tensor:
    """The derivative at groups (..., k, G), which it overwrites, from what `two_norm` gave and the derivative dy at y.

    Where all of a group is 0, so is its derivative.
    """
    *N, k, G = groups.shape
    if serves(groups) and serves(y) and serves(dy):
        room, address = y.new_empty(G), None if scale is None else scale.data_ptr()
        library.two_norm_derivative(
            groups.data_ptr(), y.data_ptr(), address, dy.data_ptr(), room.data_ptr(), math.prod(N), k, G, NORM_FLOOR,
            TINY,
        )  # fmt: skip
        increment_version(groups)
        return groups
    if scale is not None:
        dy = normalize_derivative(y, scale, dy)
        y = y / scale.masked_fill(scale == 0.0, NORM_FLOOR**-0.5)[..., None]
    return groups.mul_((dy / y.clamp(min=TINY)).unsqueeze(-2))


def normalize(x: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of x (..., D) at root-mean-square 1, and what each was multiplied by, (...): 0 where the floor held."""
    *N, D = x.shape
    if serves(x):
        y, scale = torch.empty_like(x), x.new_empty(N)
        library.normalize(x.data_ptr(), y.data_ptr(), scale.data_ptr(), math.prod(N), D, NORM_FLOOR)
        return y, scale
    mean_square = torch.linalg.vecdot(x, x) / D
    scale = mean_square.clamp(min=NORM_FLOOR).rsqrt_()
    y = x * scale[..., None]
    return y, scale.masked_fill_(mean_square < NORM_FLOOR, 0.0)


def normalize_derivative(y: Tensor, scale: Tensor, dy: Tensor) -> Tensor:
    """The derivative at the input of `normalize` (..., D), from what it gave and the derivative dy at y.

    A row at the floor was multiplied by a constant.
    """
    *N, D = y.shape
    if serves(y) and serves(scale) and serves(dy):
        dx = torch.empty_like(y)
        library.normalize_derivative(
            y.data_ptr(), scale.data_ptr(), dy.data_ptr(), dx.data_ptr(), math.prod(N), D, NORM_FLOOR
        )
        return dx
    floored = scale == 0.0
    along = (torch.linalg.vecdot(dy, y) / D).masked_fill_(floored, 0.0)
    by = scale.masked_fill(floored, NORM_FLOOR**-0.5)
    return torch.addcmul(dy, y, along[..., None], value=-1).mul_(by[..., None])
