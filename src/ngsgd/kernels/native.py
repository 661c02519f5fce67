"""The functions of ``kernels.c``, which the installation compiles where there is a C compiler.

They take the addresses of tensors; who calls one has asked `serves` first.
"""

from __future__ import annotations

import ctypes
import sysconfig
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

SIGNATURES = {  # p: address, l: number of rows or the like, f, d: float and double, s: side, i, r: where numbers go
    "affine": "pplllplpllppf",
    "affine_derivative": "ppppplllffpplpl",
    "two_norm": "ppplllf",
    "two_norm_derivative": "ppppplllff",
    "normalize": "pppllf",
    "normalize_derivative": "ppppllf",
    "append_ones": "pplll",
    "measure": "spl",
    "descend": "ssplldd",
    "renew": "plllpppdddddddpppril",
}


class Side(ctypes.Structure):
    """One side of an affine layer's step, for the function ``descend``."""

    _fields_ = (
        ("X", ctypes.c_void_p), ("D", ctypes.c_long), ("stride", ctypes.c_long),
        ("H", ctypes.c_void_p), ("W", ctypes.c_void_p), ("R", ctypes.c_long),
        ("lengths", ctypes.c_void_p), ("traces", ctypes.c_void_p),
    )  # fmt: skip


TYPES = {
    "p": ctypes.c_void_p, "l": ctypes.c_long, "f": ctypes.c_float, "d": ctypes.c_double, "s": ctypes.POINTER(Side),
    "i": ctypes.POINTER(ctypes.c_int), "r": ctypes.POINTER(ctypes.c_double),
}  # fmt: skip
GIVE_A_NUMBER = ("descend", "renew")


def _load() -> Any:
    file = Path(__file__).with_name(f"kernels{sysconfig.get_config_var('EXT_SUFFIX')}")
    if not file.exists():
        return None
    library = ctypes.CDLL(str(file))
    try:
        # Where BLAS and LAPACK are a library of their own, that of torch's depends on it.
        torchs = ctypes.CDLL(str(next(Path(torch.__file__).with_name("lib").glob("libtorch_cpu.*"))))
        library.use(ctypes.cast(torchs.sgemm_, ctypes.c_void_p), ctypes.cast(torchs.dsyevd_, ctypes.c_void_p))
    except (OSError, AttributeError, StopIteration):
        return None
    for name, signature in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes = [TYPES[letter] for letter in signature]
        function.restype = ctypes.c_int if name in GIVE_A_NUMBER else None
    return library


#: None where the installation found no compiler, or PyTorch hides its products.
library = _load()


def serves(*tensors: Tensor) -> bool:
    """Whether the functions are there and can be used on these: matrices of floats on the CPU, row after row.

    Subclasses of tensors may have no memory of their own, as those by which PyTorch traces.
    """
    return library is not None and all(
        type(t) is Tensor and t.dtype is torch.float32 and t.is_cpu and t.is_contiguous() for t in tensors
    )


def lie_in_rows(*matrices: Tensor) -> bool:
    """Whether the functions can be used on these, whose rows may begin further apart than they are long."""
    return library is not None and all(
        type(m) in (Tensor, Parameter)
        and m.dtype is torch.float32
        and m.is_cpu
        and m.dim() == 2
        and m.stride(1) == 1
        and m.stride(0) >= m.shape[1] > 0
        for m in matrices
    )


def in_reach(tensor: Tensor) -> bool:
    """Whether the host can read a tensor's numbers at once. To read those of a GPU is to wait for it."""
    return tensor.is_cpu
