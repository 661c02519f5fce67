"""The memory layout of the matrices that the operations work on."""

from __future__ import annotations

import torch
from torch import Tensor

ALIGNMENT = 16  # elements; products of rows that start at other addresses are slower


def aligned_empty(N: int, D: int, like: Tensor) -> Tensor:
    """An uninitialised matrix (N, D) whose rows start at aligned addresses.

    Args:
        N: number of rows.
        D: their dimension.
        like: a tensor of the same dtype and device.
    """
    return torch.empty_strided((N, D), (-(-D // ALIGNMENT) * ALIGNMENT, 1), dtype=like.dtype, device=like.device)


def is_fused(weight: Tensor, bias: Tensor) -> bool:
    """Whether b (D_out,) is stored as one more column of W (D_out, D_in)."""
    stride, D_in = bias.stride(0), weight.shape[1]
    return weight.data_ptr() + D_in * bias.itemsize == bias.data_ptr() and weight.stride(0) == stride > D_in


def fused_matrix(weight: Tensor, bias: Tensor) -> Tensor | None:
    """W (D_out, D_in) and b (D_out,) as one matrix (D_out, D_in + 1) if they are stored so, else None."""
    if not is_fused(weight, bias):
        return None
    D_out, D_in = weight.shape
    return weight.detach().as_strided((D_out, D_in + 1), (weight.stride(0), 1))


def is_on_host(tensor: Tensor) -> bool:
    """Whether the host can read the elements without waiting for a device."""
    return tensor.is_cpu
