"""Writes Kaldi's basic types, binary and text; `ngsgd.kaldi.stream` reads them."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from ngsgd.kaldi.stream import BINARY, Array


class Output:
    """A Kaldi file that is assembled in memory.

    Args:
        binary: whether the file is binary. Text has as many digits as are needed to read numbers back exactly.
    """

    def __init__(self, *, binary: bool) -> None:
        self.binary = binary
        self._pieces = [BINARY] if binary else []

    def bytes(self) -> bytes:
        """Returns the contents of the file."""
        return b"".join(self._pieces)

    def token(self, *tokens: str) -> None:
        self._pieces += [token.encode() + b" " for token in tokens]

    def end_line(self) -> None:
        """Ends the line in text; does nothing in binary."""
        if not self.binary:
            self._pieces.append(b"\n")

    def integer(self, value: int) -> None:
        self._pieces.append(b"\4" + struct.pack("<i", value) if self.binary else b"%d " % value)

    def real(self, value: np.float32 | np.float64) -> None:
        if self.binary:
            self._pieces.append(bytes([value.itemsize]) + value.tobytes())
        else:
            self._pieces.append(_digits(value) + b" ")

    def boolean(self, value: bool) -> None:
        self._pieces.append((b"T" if value else b"F") + (b"" if self.binary else b" "))

    def integers(self, values: npt.NDArray[np.int32]) -> None:
        if self.binary:
            self._pieces += [b"\4", struct.pack("<i", len(values)), values.astype("<i4").tobytes()]
        else:
            self._pieces.append(b"[ " + b"".join(b"%d " % v for v in values) + b"]\n")

    def array(self, array: Array) -> None:
        """Writes a vector or matrix of float32 or float64."""
        if self.binary:
            kind = ("F" if array.dtype == np.float32 else "D") + ("V" if array.ndim == 1 else "M")
            self.token(kind)
            for length in array.shape:
                self.integer(length)
            self._pieces.append(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())
        elif array.ndim == 1:
            self._pieces.append(b" [ " + b"".join(_digits(v) + b" " for v in array) + b"]\n")
        elif array.size == 0:
            self._pieces.append(b" [ ]\n")
        else:
            rows = (b"\n  " + b"".join(_digits(v) + b" " for v in row) for row in array)
            self._pieces.append(b" [" + b"".join(rows) + b"]\n")


def _digits(value: np.float32 | np.float64) -> bytes:
    """Returns the shortest text that is read back as the same number of its type."""
    return str(value).encode()
