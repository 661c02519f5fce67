"""Reads Kaldi's basic types from binary and text files: tokens, numbers, vectors, matrices.

Files are not trusted: memory is allocated only for bytes that are in the file, whatever a header says, and types other
than these are rejected before any other library parses them.

Source: ``base/io-funcs.cc``, ``matrix/kaldi-matrix.cc``, ``matrix/kaldi-vector.cc``, ``matrix/compressed-matrix.cc``.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import re
import struct
import unicodedata
import zlib
from collections.abc import Iterator
from typing import IO, Any, NoReturn

import kaldiio.matio
import numpy as np
import numpy.typing as npt

from ngsgd.errors import DataError, NgsgdError
from ngsgd.files import require_regular_file

BINARY = b"\0B"
PIECE = 2**16  # bytes read at a time
MAX_EXPANSION = 100  # largest uncompressed size of a gzipped file, relative to its size
MIN_LIMIT = 2**24  # uncompressed bytes that any gzipped file may have
MAX_TOKEN = 4096  # bytes
MAX_LINE = 2**26  # bytes
MAX_OBJECT = 2**30  # bytes of one matrix or vector in the file; larger ones are damage or an attack

Array = npt.NDArray[Any]

# Bytes of an element, by the type token of a binary matrix or vector.
_ELEMENT = {b"FM": 4, b"DM": 8, b"FV": 4, b"DV": 8, b"CM": 1, b"CM2": 2, b"CM3": 1}
_SPACE = re.compile(rb"[ \t\r\n\v\f]")
_NOT_SPACE = re.compile(rb"[^ \t\r\n\v\f]")
_LISTED = np.dtype([("size", "i1"), ("value", "<i4")])


class Input:
    """A reader of a Kaldi file.

    Args:
        f: the file, positioned at its start or at that of an object; it need not be seekable.
        name: name of the file in errors.
        error: type of error to raise.
        limit: largest number of (uncompressed) bytes to read; None for no limit.

    Attributes:
        binary: whether the current object is binary; set by `start`.
    """

    def __init__(
        self,
        f: IO[bytes],
        name: str | os.PathLike[str],
        error: type[NgsgdError] = DataError,
        limit: int | None = None,
    ) -> None:
        self._f, self._name, self._error, self._remaining = f, os.fspath(name), error, limit
        self._buffer, self._position, self._buffer_start = b"", 0, 0
        self.binary = False

    def fail(self, reason: str) -> NoReturn:
        """Raises an error that names the file, the reason and the position."""
        raise self._error(f"{self._name}: {reason} (near byte {self._buffer_start + self._position})")

    def start(self) -> None:
        r"""Starts reading an object, which is binary if ``\0B`` precedes it."""
        self.binary = self._peek(2) == BINARY
        if self.binary:
            self._position += 2

    def at_end(self) -> bool:
        """Returns whether only white space is left."""
        return not self._skip_space()

    def take(self, n: int) -> bytes:
        """Reads n bytes.

        Raises:
            NgsgdError: fewer are left.
        """
        if self._fill(min(n, PIECE)) >= n:
            self._position += n
            return self._buffer[self._position - n : self._position]
        if n > MAX_OBJECT:
            self.fail(f"an object of {n} bytes, more than {MAX_OBJECT}")
        # Reads in pieces, so that memory grows with the file and not with the size in its header.
        pieces, missing = [self._buffer[self._position :]], n - (len(self._buffer) - self._position)
        self._discard(len(self._buffer))
        while missing:
            piece = self._read(min(missing, 16 * PIECE))
            if not piece:
                self.fail("the file is truncated")
            pieces.append(piece)
            self._buffer_start += len(piece)
            missing -= len(piece)
        return b"".join(pieces)

    def line(self) -> bytes | None:
        """Reads the rest of the line, without its end; returns None at the end of the file.

        Raises:
            NgsgdError: the line is longer than `MAX_LINE`.
        """
        if not self._fill(1):
            return None
        end = self._find(re.compile(rb"\n"), MAX_LINE)
        if end - self._position > MAX_LINE:
            self.fail(f"a line of more than {MAX_LINE} bytes")
        text = self._buffer[self._position : end]
        self._position = min(end + 1, len(self._buffer))
        return text

    def token(self) -> str:
        """Reads the next token and the byte of white space that must follow it.

        Raises:
            NgsgdError: there is no valid token.
        """
        if not self._skip_space():
            self.fail("the file is truncated")
        end = self._find(_SPACE, MAX_TOKEN)
        if end == len(self._buffer):
            self.fail("expected a token, or the file is truncated")
        word = self._buffer[self._position : end]
        self._position = end + 1
        try:
            text = word.decode("utf-8")
        except UnicodeDecodeError:
            self.fail("a token that is not UTF-8")
        if any(unicodedata.category(character) == "Cc" for character in text):
            self.fail("expected a token")
        return text

    def peek_token(self) -> str:
        """Returns the next token without consuming it.

        Raises:
            NgsgdError: there is no valid token.
        """
        self._skip_space()
        word = self.token()
        self._position -= len(word.encode()) + 1
        return word

    def expect(self, *tokens: str) -> None:
        """Reads the given tokens.

        Raises:
            NgsgdError: the file has other tokens.
        """
        for token in tokens:
            if (found := self.token()) != token:
                self.fail(f"expected {token}, found {found!r:.60}")

    def integer(self) -> int:
        """Reads an int32."""
        if self.binary:
            return int(self._number({b"\4": "<i"}))
        word = self.token()
        if not re.fullmatch(r"[+-]?\d{1,10}", word) or not -(2**31) <= int(word) < 2**31:
            self.fail(f"expected an integer, found {word!r:.60}")
        return int(word)

    def real(self) -> np.float32 | np.float64:
        """Reads a float or double, whichever the file has; text is read as double."""
        if self.binary:
            size = self._peek(1)
            return (np.float32 if size == b"\4" else np.float64)(self._number({b"\4": "<f", b"\10": "<d"}))
        return np.float64(self._float(self.token()))

    def boolean(self) -> bool:
        """Reads a bool: T or F."""
        word = self.take(1) if self.binary else self.token().encode()
        if word not in (b"T", b"F"):
            self.fail("expected T or F")
        return word == b"T"

    def integers(self) -> npt.NDArray[np.int32]:
        """Reads a ``std::vector<int32>`` within an object; its text form is ``[ 1 2 3 ]``."""
        if self.binary:
            return np.frombuffer(self.take(4 * self._length()), "<i4").astype(np.int32)
        return self._integers_of(self._text_between_brackets().split())

    def array(self, ndim: int) -> Array:
        """Reads a vector (ndim 1) or a matrix (ndim 2), compressed or not.

        Returns:
            float64 if the file has doubles or text, otherwise float32.

        Raises:
            NgsgdError: the array is truncated, of another type, or a text matrix whose rows differ in length.
        """
        if not self.binary:
            return self._text_array(ndim)
        head = bytearray()
        while not head.endswith(b" ") and len(head) <= 3:
            head += self.take(1)
        kind = bytes(head[:-1])
        if kind not in _ELEMENT or kind.endswith(b"V") != (ndim == 1):
            expected = "vector" if ndim == 1 else "matrix"
            self.fail(f"expected a {expected}, found an object of type {bytes(head)!r}")
        if kind.startswith(b"C"):
            header = self.take(16)
            rows, cols = struct.unpack("<ii", header[8:])
            columns = 8 * cols if kind == b"CM" else 0
        else:
            header = self.take(5 * ndim)
            dims = [self._count(header[i : i + 5]) for i in range(0, 5 * ndim, 5)]
            rows, cols = dims[0], dims[-1] if ndim == 2 else 1
            columns = 0
        if rows < 0 or cols < 0 or (rows > 0 and cols == 0):
            self.fail(f"a matrix of {rows} x {cols}")
        body = self.take(columns + _ELEMENT[kind] * rows * cols)
        if rows * cols == 0:
            return np.zeros((rows, cols) if ndim == 2 else 0, np.float32)
        array = kaldiio.matio.read_kaldi(io.BytesIO(BINARY + bytes(head) + header + body))
        return np.array(array, np.float64 if kind.startswith(b"D") else np.float32)

    def listed_integers(self) -> npt.NDArray[np.int32]:
        """Reads an archive entry of type ``std::vector<int32>``, such as an alignment; its text form is a line."""
        if not self.binary:
            line = self.line() or b""
            if b"_" in line:  # Python accepts underscores within numbers
                self.fail("expected integers")
            return self._integers_of(line.split())
        records = np.frombuffer(self.take(_LISTED.itemsize * self._length()), _LISTED)
        if (records["size"] != 4).any():
            self.fail("a number that is not an int32")
        return records["value"].astype(np.int32)

    def skip_listed_integers(self) -> None:
        """Skips the entry that `listed_integers` would read."""
        if self.binary:
            self.take(_LISTED.itemsize * self._length())
        else:
            self.line()

    def _length(self) -> int:
        length = self._count(self.take(5))
        if length < 0:
            self.fail(f"a vector of length {length}")
        return length

    def _count(self, field: bytes) -> int:
        if field[:1] != b"\4":
            self.fail("expected an int32")
        return int(struct.unpack("<i", field[1:])[0])

    def _number(self, formats: dict[bytes, str]) -> Any:
        size = self.take(1)
        if size not in formats:
            self.fail(f"expected a number of {' or '.join(str(s[0]) for s in formats)} bytes, found {size!r}")
        return struct.unpack(formats[size], self.take(size[0]))[0]

    def _float(self, word: bytes | str) -> float:
        try:
            return float(word)
        except ValueError:
            self.fail(f"expected a number, found {word!r:.60}")

    def _integers_of(self, words: list[bytes]) -> npt.NDArray[np.int32]:
        try:
            values = np.array(words, np.int64) if words else np.zeros(0, np.int64)
        except (ValueError, OverflowError):
            self.fail("expected integers")
        if ((values < -(2**31)) | (values >= 2**31)).any():
            self.fail("an integer beyond int32")
        return values.astype(np.int32)

    def _text_between_brackets(self) -> bytes:
        if not self._skip_space():
            self.fail("the file is truncated")
        if self._peek(1) != b"[":
            self.fail("expected numbers, binary or in brackets")
        self._position += 1
        end = self._find(re.compile(rb"\]"), MAX_OBJECT)
        text = self._buffer[self._position : end]
        if end == len(self._buffer):
            self.fail("the file is truncated")
        self._position = end + 1
        return text

    def _text_array(self, ndim: int) -> npt.NDArray[np.float64]:
        text = self._text_between_brackets()
        try:
            words = text.replace(b";", b" ").strip()
            values = np.fromstring(words, np.float64, sep=" ") if words else np.zeros(0)
        except ValueError:
            self.fail("expected numbers")
        if ndim == 1:
            return values
        # Only row lengths are kept: a list of all words would take many times the size of the file.
        lengths = {count for line in re.split(rb"[\n;]", text) if (count := len(line.split()))}
        if len(lengths) > 1:
            self.fail("a matrix whose rows differ in length")
        return values.reshape(-1, lengths.pop()) if lengths else np.zeros((0, 0))

    def _skip_space(self) -> bool:
        """Skips white space; returns whether anything follows."""
        while True:
            if match := _NOT_SPACE.search(self._buffer, self._position):
                self._position = match.start()
                return True
            self._discard(len(self._buffer))
            if not self._fill(1):
                return False

    def _find(self, pattern: re.Pattern[bytes], limit: int) -> int:
        """Returns the buffer index of the next match; the end of the buffer if the file has none within the limit."""
        start = self._position
        while not (match := pattern.search(self._buffer, start)):
            had = len(self._buffer) - self._position
            if had > limit or self._fill(had + 1) == had:
                return len(self._buffer)
            start = self._position + had
        return match.start()

    def _peek(self, n: int) -> bytes:
        self._fill(n)
        return self._buffer[self._position : self._position + n]

    def _fill(self, n: int) -> int:
        """Fills the buffer with at least n bytes, if the file has them; returns the number of bytes available."""
        if (available := len(self._buffer) - self._position) < n:
            pieces = [self._buffer[self._position :]]
            self._discard(self._position)
            # A long line is read in growing pieces, so that it is not copied for every piece.
            while available < n and (piece := self._read(max(PIECE, available))):
                pieces.append(piece)
                available += len(piece)
            self._buffer, self._position = b"".join(pieces), 0
        return available

    def _discard(self, n: int) -> None:
        """Discards the first n bytes of the buffer."""
        self._buffer_start += n
        self._buffer, self._position = self._buffer[n:], max(0, self._position - n)

    def _read(self, n: int) -> bytes:
        try:
            piece = self._f.read(n)
        except (OSError, EOFError, zlib.error) as e:  # raised for a damaged gzip file
            self.fail(f"cannot be read: {e}")
        if self._remaining is not None:
            self._remaining -= len(piece)
            if self._remaining < 0:
                self.fail(f"it grows more than {MAX_EXPANSION}-fold; if that is right, unpack it first")
        return piece


@contextlib.contextmanager
def open_input(path: str | os.PathLike[str], error: type[NgsgdError] = DataError, offset: int = 0) -> Iterator[Input]:
    """Opens a Kaldi file at an offset (bytes); a file whose name ends with ``.gz`` is decompressed.

    Raises:
        NgsgdError: the file cannot be opened; raised as the type ``error``.
    """
    try:
        require_regular_file(path)
        f: Any = gzip.open(path) if os.fspath(path).endswith(".gz") else open(path, "rb")  # noqa: SIM115
    except OSError as e:
        raise error(f"{os.fspath(path)}: {e.strerror or e}") from None
    except ValueError as e:  # the path contains NUL
        raise error(f"{os.fspath(path)!r}: {e}") from None
    with f:
        if offset:
            try:
                f.seek(offset)
            except (OSError, OverflowError, ValueError, EOFError, zlib.error) as e:
                raise error(f"{os.fspath(path)}: no byte {offset} ({e})") from None
        size = os.stat(path).st_size
        yield Input(f, path, error, MAX_EXPANSION * size + MIN_LIMIT if os.fspath(path).endswith(".gz") else None)
