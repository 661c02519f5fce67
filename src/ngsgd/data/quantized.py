"""Features in 8 or 16 bits: each dimension of an example in equal steps from its least to its greatest value.

A value is off by at most half a step, the range of its dimension in the example divided by 510 or 131070, and by the
rounding of float32, which is more than that where a dimension varies little beside its mean.
Source: the idea of Kaldi's ``CompressedMatrix``, which has other steps.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ngsgd.data.corpus import Float32s

CODES = {8: np.dtype("<u1"), 16: np.dtype("<u2")}


def encode(features: Float32s, bits: int) -> tuple[npt.NDArray[np.integer], Float32s, Float32s]:
    """The codes of examples' features.

    Args:
        features: (n, T, dim).
        bits: of a code, 8 or 16.

    Returns:
        Codes (n, T, dim); the least value and the step of each dimension, (n, dim) each.
    """
    low = features.min(axis=1)
    # In double precision: the difference of two numbers may be more than float32 can hold, a step is not.
    step = ((features.max(axis=1).astype(np.float64) - low) / (2**bits - 1)).astype(np.float32)
    offsets = features.astype(np.float64) - low[:, None]
    codes = np.rint(np.divide(offsets, step[:, None], out=np.zeros_like(offsets), where=step[:, None] > 0))
    # The step was rounded, so that the greatest value may come out one code too high.
    return codes.clip(0, 2**bits - 1).astype(CODES[bits]), low, step


def decode(codes: npt.NDArray[np.integer], low: Float32s, step: Float32s) -> Float32s:
    """The features (n, T, dim) that codes stand for."""
    features = codes.astype(np.float32)
    features *= step[:, None]
    features += low[:, None]
    return features
