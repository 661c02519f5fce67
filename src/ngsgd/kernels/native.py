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

SIGNATURES = {  # p: address, l: number of rows or the like, f, d: float and double, i: where a number is put
    "two_norm": "ppplllf",
    "two_norm_derivative": "ppppplllff",
    "normalize": "pppllf",
    "normalize_derivative": "ppppllf",
    "row_lengths": "plllpplpp",
    "append_ones": "pplll",
    "layer_step": "pppplddi",
    "fisher_z": "pppdddllppl",
    "fisher_solution": "ppddpdddlldddpppppil",
}
TYPES = {
    "p": ctypes.c_void_p, "l": ctypes.c_long, "f": ctypes.c_float, "d": ctypes.c_double,
    "i": ctypes.POINTER(ctypes.c_int),
}  # fmt: skip
GIVE_A_NUMBER = ("layer_step", "fisher_z", "fisher_solution")


def _load() -> Any:
    file = Path(__file__).with_name(f"kernels{sysconfig.get_config_var('EXT_SUFFIX')}")
    if not file.exists():
        return None
    library = ctypes.CDLL(str(file))
    for name, signature in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes = [TYPES[letter] for letter in signature]
        function.restype = ctypes.c_double if name in GIVE_A_NUMBER else None
    return library


#: None where the installation found no compiler.
library = _load()


def serves(*tensors: Tensor) -> bool:
    """Whether the functions are there and can be used on these: matrices of floats on the CPU, row after row.

    Subclasses of tensors may have no memory of their own, as those by which PyTorch traces.
    """
    return library is not None and all(
        type(t) is Tensor and t.dtype is torch.float32 and t.is_cpu and t.is_contiguous() for t in tensors
    )


def in_reach(tensor: Tensor) -> bool:
    """Whether the host can read a tensor's numbers at once. To read those of a GPU is to wait for it."""
    return tensor.is_cpu
