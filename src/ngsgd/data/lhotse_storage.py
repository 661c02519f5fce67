"""Readers of the arrays that Lhotse's manifests point to: features, and arrays attached to cuts.

Lhotse loads them by a registry of readers, and cuts out the frames of a cut itself. The readers here are registered
next to Lhotse's own, which run or unpickle what some files hold and trust the sizes in all of them.
"""

from __future__ import annotations

import functools
import io
import itertools
import math
import re
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ngsgd.data.corpus import map_array
from ngsgd.data.hdf5 import Hdf5File
from ngsgd.errors import UtteranceError
from ngsgd.files import require_regular_file
from ngsgd.kaldi.tables import Locations, Script, read_location

MAX_BYTES = 2**30  # bytes of one array; larger ones are damage or an attack
CHUNK = 500  # frames of each chunk but the last in a file of type lilcom_chunky

Array = npt.NDArray[Any]
#: Reads an array: path, key, first frame, end of the frames (None for all), and how paths are looked up.
Reader = Callable[[str, Any, int, int | None, Locations], Array]


def _numpy_files(path: str, key: str, first: int, last: int | None, locations: Locations) -> Array:
    return np.array(map_array(Path(path) / key)[first:last])


def _numpy_hdf5(path: str, key: str, first: int, last: int | None, locations: Locations) -> Array:
    with Hdf5File(Path(path)) as source:
        return source.read(key, first, last)


def _lilcom_hdf5(path: str, key: str, first: int, last: int | None, locations: Locations) -> Array:
    with Hdf5File(Path(path)) as source:
        return decompress([source.read(key).tobytes()])[first:last]


def _lilcom_chunky(path: str, key: str, first: int, last: int | None, locations: Locations) -> Array:
    """Reads the chunks with the wanted frames; the key has the position of the array and the size of each chunk."""
    if not re.fullmatch(r"\d{1,18}(,\d{1,18})*", key):
        raise UtteranceError(f"{key!r:.60} is not a list of chunks")
    require_regular_file(path)
    skipped = first // CHUNK
    bounds = list(itertools.accumulate(map(int, key.split(","))))
    bounds = bounds[skipped : None if last is None else math.ceil(last / CHUNK) + 1]
    with open(path, "rb") as f:
        if bounds and bounds[-1] > f.seek(0, 2):
            raise UtteranceError(f"{path}: truncated: a chunk ends at byte {bounds[-1]}")
        f.seek(bounds[0] if bounds else 0)
        chunks = [f.read(end - start) for start, end in itertools.pairwise(bounds)]
    start = CHUNK * skipped
    return decompress(chunks)[first - start : None if last is None else last - start]


def _kaldi(path: str, key: str, first: int, last: int | None, locations: Locations) -> Array:
    """Reads a Kaldi matrix; the path is that of an ``.scp`` file, or the place in an archive, ``feats.ark:123``."""
    if path.endswith(".scp"):
        script = _script(path, locations)
        if key not in script:
            raise UtteranceError(f"{path}: no entry {key:.60}")
        return script.read(key)[first:last]
    return read_location(path, locations, key)[first:last]


@functools.lru_cache(maxsize=4)
def _script(path: str, locations: Locations) -> Script:
    return Script(path, locations)


READERS: dict[str, Reader] = {
    "numpy_files": _numpy_files,
    "numpy_hdf5": _numpy_hdf5,
    "lilcom_chunky": _lilcom_chunky,
    "lilcom_hdf5": _lilcom_hdf5,
    "kaldiio": _kaldi,
}


def _npy_bytes(path: str, key: bytes, first: int, last: int | None, locations: Locations) -> Array:
    """Reads an array that is in memory, in the form of an .npy file."""
    source = io.BytesIO(key)
    try:
        np.lib.format.read_magic(source)
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(source)
        data = key[source.tell() :]
        if is_fortran or dtype.hasobject or len(data) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{len(data)} bytes for {dtype}{shape}")
        return np.frombuffer(data, dtype).reshape(shape)[first:last]
    except (ValueError, SyntaxError, TypeError, OverflowError, tokenize.TokenError) as e:
        raise UtteranceError(f"not an .npy array, or damaged ({e})") from None


def _lilcom_bytes(path: str, key: bytes, first: int, last: int | None, locations: Locations) -> Array:
    return decompress([key])[first:last]


#: Readers of arrays in memory, by the endings of the files that they come from.
MEMORY: dict[str, Reader] = {".npy": _npy_bytes, ".llc": _lilcom_bytes}


@functools.cache
def register(storage_type: str, locations: Locations) -> str:
    """Registers the reader of a storage type with Lhotse.

    Args:
        storage_type: one of `READERS` or `MEMORY`.
        locations: how paths in Kaldi's ``.scp`` files are looked up.

    Returns:
        The storage type that a manifest must have to be read by it.
    """
    from lhotse.features.io import register_reader

    class RegisteredReader:
        name = f"ngsgd {storage_type} {locations}"

        def __init__(self, storage_path: str) -> None:
            self._path = storage_path

        def read(self, key: Any, left_offset_frames: int = 0, right_offset_frames: int | None = None) -> Array:
            return (READERS | MEMORY)[storage_type](self._path, key, left_offset_frames, right_offset_frames, locations)

    register_reader(RegisteredReader)
    return RegisteredReader.name


def decompress(chunks: list[bytes]) -> Array:
    """Returns the rows of matrices that lilcom compressed, concatenated.

    Raises:
        UtteranceError: lilcom is not installed, a chunk is damaged, or the matrix is too large.
    """
    try:
        import lilcom
    except ImportError:
        raise UtteranceError("compressed by lilcom, which is not installed; pip install 'ngsgd[lilcom]'") from None
    left = MAX_BYTES
    for data in chunks:
        # lilcom computes positions with 32 bits, so that it must not see a larger matrix.
        left -= 4 * math.prod(_shape(lilcom, data))
        if left < 0:
            raise UtteranceError(f"a compressed matrix of more than {MAX_BYTES} bytes")
    try:
        arrays = [lilcom.decompress(data) for data in chunks]
        return np.concatenate(arrays) if arrays else np.zeros((0, 0), np.float32)
    except (ValueError, RuntimeError) as e:
        raise UtteranceError(f"not compressed by lilcom, or damaged ({e})") from None


def _shape(lilcom: Any, data: bytes) -> tuple[int, ...]:
    try:
        shape: tuple[int, ...] = lilcom.get_shape(data)
    except (ValueError, RuntimeError) as e:
        raise UtteranceError(f"not compressed by lilcom, or damaged ({e})") from None
    return shape
