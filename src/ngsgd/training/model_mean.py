"""The mean of models, read from their files block by block. Imports no torch."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ngsgd.errors import ModelError
from ngsgd.network.storage import Arrays, Rows, open_model

BLOCK = 1 << 16  # elements of each model that are summed at a time


def average_arrays(paths: Sequence[str | os.PathLike[str]], weights: Sequence[float] | None = None) -> Arrays:
    """Returns the mean of all arrays (parameters and running statistics) of several models; see `mean`.

    Each model is read once, one block at a time; only the mean is held in memory.

    Raises:
        ModelError: a model cannot be read, or its arrays differ in name or shape from the first model's.
    """
    with contextlib.ExitStack() as stack:
        return mean([(os.fspath(path), stack.enter_context(open_model(path))) for path in paths], weights)


@np.errstate(over="ignore", invalid="ignore")  # `end_iteration` reports a mean that is not finite
def mean(models: Sequence[tuple[str, Mapping[str, Rows]]], weights: Sequence[float] | None = None) -> Arrays:
    """Returns the mean of the models' arrays, or with weights their weighted sum.

    Sums are taken in double precision in the order of the models, so that the same models give the same bytes, and
    block by block over all models, so that a block's sum stays in the processor's cache.

    Args:
        models: name and arrays of each model.
        weights: of the models; None for the mean.

    Raises:
        ModelError: a model's arrays differ in name or shape from the first model's.
    """
    first_name, first = models[0]
    shapes = {key: array.shape for key, array in first.items()}
    for name, arrays in models:
        if {key: array.shape for key, array in arrays.items()} != shapes:
            raise ModelError(f"{name}: its arrays are not those of {first_name}")
    result: Arrays = {}
    for key, shape in shapes.items():
        rows = max(1, BLOCK // max(1, math.prod(shape[1:])))
        mean_array: npt.NDArray[Any] | None = None
        for begin in range(0, shape[0], rows):
            span = slice(begin, min(begin + rows, shape[0]))
            block = first[key][span]
            total = block.astype(np.float64)
            if weights:
                total *= weights[0]
            for i, (_, arrays) in enumerate(models[1:], start=1):
                other = arrays[key][span]
                total += weights[i] * other.astype(np.float64) if weights else other
            if mean_array is None:
                mean_array = result[key] = np.empty(shape, block.dtype)
            mean_array[span] = total if weights else total / len(models)
    return result
