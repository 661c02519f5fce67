"""Quantisation of features to 8 or 16 bits, linear between the minimum and maximum of each dimension in an example.

The error is at most half a step, which is the range of the dimension in the example divided by 510 (8 bits) or 131070
(16 bits), plus float32 rounding, which dominates if a dimension's range is small relative to its mean.
Source: the idea is that of Kaldi's ``CompressedMatrix``, whose steps differ.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ngsgd.data.corpus import Float32s

CODES = {8: np.dtype("<u1"), 16: np.dtype("<u2")}


def encode(features: Float32s, bits: int) -> tuple[npt.NDArray[np.integer], Float32s, Float32s]:
    """Quantises the features of examples.

    Args:
        features: (n, T, dim).
        bits: bits of a code, 8 or 16.

    Returns:
        Codes (n, T, dim), then the smallest value and the step of each dimension, (n, dim) each.
    """
    low = features.min(axis=1)
    # In double precision, since the difference of two values may overflow float32; the step does not.
    step = ((features.max(axis=1).astype(np.float64) - low) / (2**bits - 1)).astype(np.float32)
    offsets = features.astype(np.float64) - low[:, None]
    codes = np.rint(np.divide(offsets, step[:, None], out=np.zeros_like(offsets), where=step[:, None] > 0))
    # The step is rounded, so the largest value may get a code that is one too high.
    return codes.clip(0, 2**bits - 1).astype(CODES[bits]), low, step


def decode(codes: npt.NDArray[np.integer], low: Float32s, step: Float32s) -> Float32s:
    """Returns the features (n, T, dim) of codes; the arguments are the results of `encode`."""
    features = codes.astype(np.float32)
    features *= step[:, None]
    features += low[:, None]
    return features
