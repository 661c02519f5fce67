"""The functions in C, which the installation compiles where there is a C compiler.

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

#: p: address, l: number of rows or the like, f, d: float and double, b, a, t: base, layers and top, s: steps,
#: w: renewal, n: where a number goes
SIGNATURES = {
    "lay": "balllp",
    "there_and_back": "baltpllpff",
    "two_norm": "ppplllf",
    "two_norm_derivative": "ppppplllff",
    "normalize": "pppllf",
    "normalize_derivative": "ppppllf",
    "append_ones": "pplll",
    "lay_steps": "slpn",
    "descend": "slpdd",
    "renew": "wplllppld",
}


class Layer(ctypes.Structure):
    """An affine layer, for the way through a network. What stands from T on is filled in there."""

    _fields_ = (
        ("W", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("W_stride", "D", "k", "G", "norm")),
        ("chosen", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("P", "K", "T", "N", "stride")),
        *((matrix, ctypes.c_void_p) for matrix in ("rows", "z", "y", "scale", "factor", "dx", "dy")),
    )


class Base(ctypes.Structure):
    """What stands below the lowest layer."""

    _fields_ = (
        ("D", ctypes.c_long), ("chosen", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("T", "P", "K")),
        *((matrix, ctypes.c_void_p) for matrix in ("W", "b", "spliced")),
    )  # fmt: skip


class Top(ctypes.Structure):
    """What stands above the uppermost layer."""

    _fields_ = (
        ("scales", ctypes.c_void_p), ("labels", ctypes.c_void_p), ("loss", ctypes.c_double), ("correct", ctypes.c_long),
    )  # fmt: skip


class Renewal(ctypes.Structure):
    """What an estimate is renewed from beside matrices, and what has come out."""

    _fields_ = (
        ("d", ctypes.c_void_p),
        *((name, ctypes.c_double) for name in ("rho", "alpha", "eta", "epsilon", "delta", "condition", "tolerance")),
        *((matrix, ctypes.c_void_p) for matrix in ("W_1", "shrunk", "d_1")),
        ("rho_1", ctypes.c_double), ("doubtful", ctypes.c_long), ("outcome", ctypes.c_long),
    )  # fmt: skip


class Side(ctypes.Structure):
    """One side of a layer's step."""

    _fields_ = (
        ("X", ctypes.c_void_p), ("D", ctypes.c_long), ("stride", ctypes.c_long), ("W", ctypes.c_void_p),
        ("shrunk", ctypes.c_void_p), ("R", ctypes.c_long), ("renewal", ctypes.c_void_p),
        *((matrix, ctypes.c_void_p) for matrix in ("H", "lengths", "traces")),
    )  # fmt: skip


class Step(ctypes.Structure):
    """A layer's step, for the functions that make several."""

    _fields_ = (
        ("x", Side), ("y", Side), ("N", ctypes.c_long), ("W", ctypes.c_void_p), ("stride", ctypes.c_long),
        ("columns", ctypes.c_long), ("b", ctypes.c_void_p), ("limited", ctypes.c_long),
    )  # fmt: skip


TYPES = {
    "p": ctypes.c_void_p, "l": ctypes.c_long, "f": ctypes.c_float, "d": ctypes.c_double,
    "b": ctypes.POINTER(Base), "a": ctypes.POINTER(Layer), "t": ctypes.POINTER(Top), "s": ctypes.POINTER(Step),
    "w": ctypes.POINTER(Renewal), "n": ctypes.POINTER(ctypes.c_long),
}  # fmt: skip
GIVE_A_NUMBER = {"lay", "lay_steps"}


def _load() -> Any:
    file = Path(__file__).with_name(f"kernels{sysconfig.get_config_var('EXT_SUFFIX')}")
    if not file.exists():
        return None
    library = ctypes.CDLL(str(file))
    try:
        # Where BLAS and LAPACK are a library of their own, that of torch's depends on it.
        torchs = ctypes.CDLL(str(next(Path(torch.__file__).with_name("lib").glob("libtorch_cpu.*"))))
        library.use(ctypes.cast(torchs.sgemm_, ctypes.c_void_p), ctypes.cast(torchs.dsyevd_, ctypes.c_void_p))
        for name, signature in SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes = [TYPES[letter] for letter in signature]
            function.restype = ctypes.c_long if name in GIVE_A_NUMBER else None
    except (OSError, AttributeError, StopIteration):
        return None
    return library


#: None where the installation found no compiler, or PyTorch hides its products.
library = _load()


def serves(t: Tensor) -> bool:
    """Whether the functions are there and can be used on a tensor: one of floats on the CPU, row after row.

    Subclasses of tensors may have no memory of their own, as those by which PyTorch traces.
    """
    return library is not None and type(t) is Tensor and t.dtype is torch.float32 and t.is_cpu and t.is_contiguous()


def lie_in_rows(m: Tensor) -> bool:
    """Whether the functions can be used on a matrix, whose rows may begin further apart than they are long."""
    if library is None or type(m) not in (Tensor, Parameter) or m.dtype is not torch.float32 or not m.is_cpu:
        return False
    strides, shape = m.stride(), m.shape
    return len(shape) == 2 and strides[1] == 1 and strides[0] >= shape[1] > 0


def in_reach(tensor: Tensor) -> bool:
    """Whether the host can read a tensor's numbers at once. To read those of a GPU is to wait for it."""
    return tensor.is_cpu
