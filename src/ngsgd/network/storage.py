"""Model files: named arrays and a header of canonical JSON, in safetensors. Imports no torch.

The same model always gives the same bytes: the file holds no time, host or path, and all metadata is in one entry,
``ngsgd``, since safetensors writes several entries in an order that changes from process to process.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from ngsgd.errors import ModelError
from ngsgd.files import atomic_write, canonical_json

KEY = "ngsgd"
FORMAT = 1

Arrays = dict[str, npt.NDArray[Any]]


class Header(TypedDict):
    """Metadata of a model's file."""

    format: int
    architecture: list[dict[str, Any]]  # specification of each component, from the input to the output
    history: dict[str, Any]  # record of the model's training


def write_model(path: str | os.PathLike[str], arrays: Arrays, header: Header) -> None:
    """Writes a model atomically.

    Raises:
        OSError: the file cannot be written.
    """
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with atomic_write(path) as temporary:
        # save_file would report a full disk as a SafetensorError.
        temporary.write_bytes(safetensors.numpy.save(contiguous, metadata={KEY: canonical_json(header)}))


def read_header(path: str | os.PathLike[str]) -> Header:
    """Reads the header of a model's file, without its arrays.

    Raises:
        ModelError: the file is missing, truncated, or not a model of this project.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as f:
            metadata = f.metadata() or {}
    except (OSError, safetensors.SafetensorError) as e:
        raise _unreadable(path, e) from None
    return _checked_header(path, metadata)


def read_model(path: str | os.PathLike[str]) -> tuple[Arrays, Header]:
    """Reads the arrays and the header of a model's file.

    Raises:
        ModelError: the file is missing, truncated, or not a model of this project.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as f:
            header = _checked_header(path, f.metadata() or {})
            arrays = {name: f.get_tensor(name) for name in sorted(f.keys())}
    # Types that numpy does not have raise TypeError or AttributeError.
    except (OSError, safetensors.SafetensorError, TypeError, AttributeError) as e:
        raise _unreadable(path, e) from None
    return arrays, header


class Rows(Protocol):
    """An array with at least one dimension, which can be sliced by rows."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]: ...


class _LazyArray:
    """An array in a file, whose rows are read on access."""

    def __init__(self, path: str | os.PathLike[str], stored: Any) -> None:
        self._path = path
        self._stored = stored
        self.shape = tuple(stored.get_shape())

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        try:
            array: npt.NDArray[Any] = self._stored[rows]
        # Types that numpy does not have raise TypeError or AttributeError.
        except (OSError, safetensors.SafetensorError, TypeError, AttributeError) as e:
            raise _unreadable(self._path, e) from None
        return array


@contextlib.contextmanager
def open_model(path: str | os.PathLike[str]) -> Iterator[dict[str, Rows]]:
    """Opens a model's file to read its arrays in parts.

    Raises:
        ModelError: the file is missing, truncated, or not a model of this project.
    """
    try:
        opened = safetensors.safe_open(path, framework="numpy")
    except (OSError, safetensors.SafetensorError) as e:
        raise _unreadable(path, e) from None
    with opened as f:
        _checked_header(path, f.metadata() or {})
        arrays: dict[str, Rows] = {name: _LazyArray(path, f.get_slice(name)) for name in sorted(f.keys())}
        if not all(array.shape and min(array.shape) for array in arrays.values()):
            raise ModelError(f"{os.fspath(path)}: an array has no elements; delete the file and run again")
        yield arrays


def _unreadable(path: str | os.PathLike[str], error: Exception) -> ModelError:
    if not Path(path).exists():
        return ModelError(f"{os.fspath(path)}: no such model file")
    return ModelError(
        f"{os.fspath(path)}: not a whole safetensors file ({error}); delete it and run again to remake it"
    )


def _reject_constant(constant: str) -> None:
    raise ValueError(constant)  # NaN and infinity are not JSON


def _checked_header(path: str | os.PathLike[str], metadata: dict[str, str]) -> Header:
    message = f"{os.fspath(path)}: a safetensors file, but not a model of ngsgd"
    try:
        header = json.loads(metadata[KEY], parse_constant=_reject_constant)
    except (KeyError, ValueError, RecursionError):
        raise ModelError(message) from None
    if not (
        isinstance(header, dict)
        and isinstance(header.get("architecture"), list)
        and all(isinstance(component, dict) for component in header["architecture"])
        and isinstance(header.get("history"), dict)
    ):
        raise ModelError(message)
    if header.get("format") != FORMAT:
        raise ModelError(f"{os.fspath(path)}: model format {header.get('format')!r}, this version reads {FORMAT}")
    return Header(format=FORMAT, architecture=header["architecture"], history=header["history"])
