"""Reads arrays from HDF5 files as h5py writes them by default: contiguous datasets in groups of the old format.

The HDF5 library is not safe with damaged files and opens other files that one names. This reader follows no link to
another file, applies no filter, and checks each position and size against the file. Source: HDF5 File Format
Specification 3.0, with the sections' names of the structures.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from ngsgd.errors import UtteranceError
from ngsgd.files import require_regular_file

SIGNATURE = b"\x89HDF\r\n\x1a\n"
UNDEFINED = 2**64 - 1  # address of data that was never written
MAX_BYTES = 2**30  # bytes of one array; larger ones are damage or an attack
MAX_NAME = 4096  # bytes
MAX_DIMS = 32

# Types of messages in an object header.
_DATASPACE, _DATATYPE, _EXTERNAL, _LAYOUT, _CONTINUATION, _SYMBOL_TABLE = 0x01, 0x03, 0x07, 0x08, 0x10, 0x11

# Properties of IEEE numbers by their bytes: bit offset and precision, exponent and mantissa as position and size, bias.
_IEEE = {2: (0, 16, 10, 5, 0, 10, 15), 4: (0, 32, 23, 8, 0, 23, 127), 8: (0, 64, 52, 11, 0, 52, 1023)}


class Hdf5File:
    """An open HDF5 file; a context manager.

    Raises:
        UtteranceError: it is not an HDF5 file, or one of a newer format.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        require_regular_file(path)
        self._path = path
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  closed by __exit__
        self._size = os.fstat(self._file.fileno()).st_size
        try:
            self._root = self._superblock()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Hdf5File:
        return self

    def __exit__(self, *args: object) -> None:
        self._file.close()

    def read(self, name: str, first: int = 0, last: int | None = None) -> npt.NDArray[Any]:
        """Returns rows ``first`` to ``last`` - 1 of a dataset; all of a dataset without dimensions.

        Raises:
            UtteranceError: there is no such dataset, it is not a contiguous array of numbers or bytes, or the file is
                damaged.
        """
        messages = dict(self._messages(self._find(name)))
        if _EXTERNAL in messages:
            self._fail("a dataset in another file")
        for kind in (_DATASPACE, _DATATYPE, _LAYOUT):
            if kind not in messages:
                self._fail(f"{name:.60} is not a dataset")
        shape, dtype = self._shape(messages[_DATASPACE]), self._dtype(messages[_DATATYPE])
        size = math.prod(shape) * dtype.itemsize
        if size > MAX_BYTES:
            self._fail(f"an array of {size} bytes, more than {MAX_BYTES}")
        first, last, _ = slice(first, last).indices(shape[0] if shape else 1)
        rows = max(0, last - first)
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        data = self._data(messages[_LAYOUT], size, first * row_bytes, rows * row_bytes)
        return np.frombuffer(data, dtype).reshape((rows, *shape[1:]) if shape else ()).copy()

    def _fail(self, reason: str) -> NoReturn:
        raise UtteranceError(f"{self._path}: {reason}")

    def _bytes(self, address: int, number: int) -> bytes:
        if number < 0 or address + number > self._size:
            self._fail("truncated, or not an HDF5 file")
        data = os.pread(self._file.fileno(), number, address) if number else b""
        if len(data) != number:
            self._fail("truncated while it was read")
        return data

    def _superblock(self) -> int:
        """Returns the address of the root group's object header."""
        head = self._bytes(0, 9)
        if head[:8] != SIGNATURE:
            self._fail("not an HDF5 file")
        if head[8] > 1:
            self._fail("an HDF5 file of a newer format; write it with h5py's default libver")
        fields = self._bytes(13, 2)
        if fields != b"\x08\x08":
            self._fail("an HDF5 file with addresses that do not have 64 bits")
        start = 24 + 4 * head[8]
        base, _, _, _, _, root = struct.unpack("<6Q", self._bytes(start, 48))
        if base:
            self._fail("an HDF5 file within another file")
        return int(root)

    def _messages(self, address: int) -> Iterator[tuple[int, bytes]]:
        """Yields type and contents of the messages of an object header."""
        version, left, size = struct.unpack("<BxH4xI", self._bytes(address, 12))
        if version != 1:
            self._fail("an object of a newer format; write the file with h5py's default libver")
        blocks = [(address + 16, size)]
        for position, length in blocks:
            end = position + length
            while left and position + 8 <= end:
                kind, size, flags = struct.unpack("<HHB", self._bytes(position, 5))
                data = self._bytes(position + 8, size)
                position, left = position + 8 + size, left - 1
                if kind == _CONTINUATION and len(data) >= 16:
                    blocks.append(struct.unpack("<2Q", data[:16]))
                elif flags & 2 and kind in (_DATASPACE, _DATATYPE, _LAYOUT):
                    self._fail("a dataset that shares its description with others")
                else:
                    yield kind, data

    def _find(self, name: str) -> int:
        """Returns the address of the object header of a dataset."""
        address = self._root
        for part in filter(None, name.split("/")):
            messages = dict(self._messages(address))
            if len(messages.get(_SYMBOL_TABLE, b"")) < 16:
                self._fail(f"no dataset {name:.60}")
            tree, heap = struct.unpack("<2Q", messages[_SYMBOL_TABLE][:16])
            found = self._lookup(tree, self._heap(heap), part.encode("utf-8", "surrogateescape"))
            if found is None:
                self._fail(f"no dataset {name:.60}")
            address = found
        return address

    def _heap(self, address: int) -> tuple[int, int]:
        """Returns address and length of the names in a local heap."""
        signature, length, data = struct.unpack("<4s4xQ8xQ", self._bytes(address, 32))
        if signature != b"HEAP":
            self._fail("damaged: no names of datasets")
        return data, length

    def _name(self, heap: tuple[int, int], offset: int) -> bytes:
        data, length = heap
        if offset >= length:
            self._fail("damaged: a name outside the names")
        return self._bytes(data + offset, min(length - offset, MAX_NAME, self._size - data - offset)).split(b"\0")[0]

    def _lookup(self, address: int, heap: tuple[int, int], wanted: bytes) -> int | None:
        """Descends the B-tree of a group; returns the address of an object header, or None."""
        level: int | None = None
        while level != 0:
            signature, found, used = struct.unpack("<4sxBH", self._bytes(address, 8))
            if signature != b"TREE" or (level is not None and found != level - 1):
                self._fail("damaged: not the index of a group")
            level = found
            fields = struct.unpack(f"<{2 * used + 1}Q", self._bytes(address + 24, 16 * used + 8))
            low, high = 0, used  # child i has the names above key i, up to key i + 1
            while low < high:
                middle = (low + high) // 2
                if self._name(heap, fields[2 * middle + 2]) < wanted:
                    low = middle + 1
                else:
                    high = middle
            if low == used:
                return None
            address = fields[2 * low + 1]
        signature, used = struct.unpack("<4s2xH", self._bytes(address, 8))
        if signature != b"SNOD":
            self._fail("damaged: not a list of datasets")
        for name, target, cache in struct.iter_unpack("<QQI20x", self._bytes(address + 8, 40 * used)):
            if cache != 2 and self._name(heap, name) == wanted:  # 2 is a symbolic link
                return int(target)
        return None

    def _shape(self, data: bytes) -> tuple[int, ...]:
        if len(data) < 4 or data[0] not in (1, 2) or data[1] > MAX_DIMS:
            self._fail("a dataset of an unknown shape")
        start, ndim = (8 if data[0] == 1 else 4), data[1]
        if len(data) < start + 8 * ndim:
            self._fail("a dataset of an unknown shape")
        return struct.unpack_from(f"<{ndim}Q", data, start)

    def _dtype(self, data: bytes) -> np.dtype[Any]:
        """Returns the type of a dataset's elements: integers, IEEE numbers, or bytes."""
        if len(data) >= 8:
            kind, bits, size = data[0] & 15, data[1], struct.unpack_from("<I", data, 4)[0]
            order = "><"[not bits & 1]
            if kind == 0 and size in (1, 2, 4, 8) and data[8:12] == struct.pack("<HH", 0, 8 * size):
                return np.dtype(f"{order}{'i' if bits & 8 else 'u'}{size}")
            if kind == 1 and size in _IEEE and data[8:20] == struct.pack("<HHBBBBI", *_IEEE[size]):
                return np.dtype(f"{order}f{size}")
            if kind == 5 and 0 < size <= MAX_BYTES:
                return np.dtype(f"V{size}")
        self._fail("a dataset that has neither numbers nor bytes")

    def _data(self, layout: bytes, size: int, start: int, number: int) -> bytes:
        """Returns ``number`` bytes of a dataset of ``size`` bytes, from byte ``start``."""
        if layout[:2] == b"\x03\x01" and len(layout) >= 18:
            address, stored = struct.unpack_from("<2Q", layout, 2)
            if stored < size or (address == UNDEFINED and size):
                self._fail("a dataset that was never written")
            return self._bytes(address + start, number) if number else b""
        if layout[:2] == b"\x03\x00" and len(layout) >= 4 + size:
            return layout[4 + start : 4 + start + number]
        self._fail("a dataset in chunks or compressed; write it with Lhotse's NumpyHdf5Writer")
