"""Kaldi's basic types in files, binary and text: tokens, numbers, vectors, matrices.

A file is believed only as far as it goes: nothing is allocated that its own bytes do not fill, and what is not of
the types named here is refused before anything else sees it.

Source: ``base/io-funcs.cc``, ``matrix/kaldi-matrix.cc``, ``matrix/kaldi-vector.cc``, ``matrix/compressed-matrix.cc``.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import re
import struct
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
MAX_EXPANSION = 100  # of a gzipped file
MIN_LIMIT = 2**24  # bytes that a gzipped file may have in any case
MAX_TOKEN = 4096  # bytes
MAX_LINE = 2**26  # bytes
MAX_OBJECT = 2**30  # bytes of one matrix or vector as it lies in the file: what goes beyond is damage, or an attack

Array = npt.NDArray[Any]

# Bytes of an element, and of what stands beside the elements, by the type that a binary matrix or vector begins with.
_ELEMENT = {b"FM": 4, b"DM": 8, b"FV": 4, b"DV": 8, b"CM": 1, b"CM2": 2, b"CM3": 1}
_SPACE = re.compile(rb"[ \t\r\n\v\f]")
_NOT_SPACE = re.compile(rb"[^ \t\r\n\v\f]")
_LISTED = np.dtype([("size", "i1"), ("value", "<i4")])


class Input:
    """A Kaldi file being read.

    Args:
        f: the file, at its begin or at the begin of an object; it need not be seekable.
        name: what errors call it.
        error: the type of error to raise.
        limit: bytes that are read at most, of a file that grows as it is read.

    Attributes:
        binary: how the object at hand is written; see `start`.
    """

    def __init__(
        self,
        f: IO[bytes],
        name: str | os.PathLike[str],
        error: type[NgsgdError] = DataError,
        limit: int | None = None,
    ) -> None:
        self._f, self._name, self._error, self._left = f, os.fspath(name), error, limit
        self._buffer, self._at, self._passed = b"", 0, 0
        self.binary = False

    def fail(self, what: str) -> NoReturn:
        """Raises the file's type of error."""
        raise self._error(f"{self._name}: {what} (near byte {self._passed + self._at})")

    def start(self) -> None:
        r"""Begins an object: binary ones stand after ``\0B``."""
        self.binary = self._peek(2) == BINARY
        if self.binary:
            self._at += 2

    def at_end(self) -> bool:
        """Whether nothing but white space is left."""
        return not self._skip_space()

    def take(self, n: int) -> bytes:
        """The next n bytes.

        Raises:
            NgsgdError: there are fewer.
        """
        if self._have(min(n, PIECE)) >= n:
            self._at += n
            return self._buffer[self._at - n : self._at]
        if n > MAX_OBJECT:
            self.fail(f"an object of {n} bytes, more than {MAX_OBJECT}")
        # Piece by piece: memory grows with what is there, not with what a header says is there.
        pieces, missing = [self._buffer[self._at :]], n - (len(self._buffer) - self._at)
        self._drop(len(self._buffer))
        while missing:
            piece = self._read(min(missing, 16 * PIECE))
            if not piece:
                self.fail("the file is truncated")
            pieces.append(piece)
            self._passed += len(piece)
            missing -= len(piece)
        return b"".join(pieces)

    def line(self) -> bytes | None:
        """What is left of the line, without its end; None where nothing more is.

        Raises:
            NgsgdError: it has no end within reason.
        """
        if not self._have(1):
            return None
        end = self._find(re.compile(rb"\n"), MAX_LINE)
        if end - self._at > MAX_LINE:
            self.fail(f"a line of more than {MAX_LINE} bytes")
        text = self._buffer[self._at : end]
        self._at = min(end + 1, len(self._buffer))
        return text

    def token(self) -> str:
        """The next word, and the byte of white space that must follow it.

        Raises:
            NgsgdError: there is none, or what is there is not one.
        """
        if not self._skip_space():
            self.fail("the file is truncated")
        end = self._find(_SPACE, MAX_TOKEN)
        if end == len(self._buffer):
            self.fail("no token where one must be, or the file is truncated")
        word = self._buffer[self._at : end]
        self._at = end + 1
        try:
            text = word.decode("utf-8")
        except UnicodeDecodeError:
            self.fail("a token that is not UTF-8")
        if not text.isprintable():
            self.fail("no token where one must be")
        return text

    def peek_token(self) -> str:
        """The next word, which stays to be read.

        Raises:
            NgsgdError: there is none, or what is there is not one.
        """
        self._skip_space()
        word = self.token()
        self._at -= len(word.encode()) + 1
        return word

    def expect(self, *tokens: str) -> None:
        """Reads these tokens.

        Raises:
            NgsgdError: others are there.
        """
        for token in tokens:
            if (found := self.token()) != token:
                self.fail(f"expected {token}, found {found!r:.60}")

    def integer(self) -> int:
        """A number of type int32."""
        if self.binary:
            return int(self._number({b"\4": "<i"}))
        word = self.token()
        if not re.fullmatch(r"[+-]?\d{1,10}", word) or not -(2**31) <= int(word) < 2**31:
            self.fail(f"expected an integer, found {word!r:.60}")
        return int(word)

    def real(self) -> np.float32 | np.float64:
        """A number of type float or double, whichever the file has; double from text."""
        if self.binary:
            size = self._peek(1)
            return (np.float32 if size == b"\4" else np.float64)(self._number({b"\4": "<f", b"\10": "<d"}))
        return np.float64(self._float(self.token()))

    def boolean(self) -> bool:
        """A number of type bool: T or F."""
        word = self.take(1) if self.binary else self.token().encode()
        if word not in (b"T", b"F"):
            self.fail("expected T or F")
        return word == b"T"

    def integers(self) -> npt.NDArray[np.int32]:
        """A ``std::vector<int32>`` as part of an object; text: ``[ 1 2 3 ]``."""
        if self.binary:
            return np.frombuffer(self.take(4 * self._length()), "<i4").astype(np.int32)
        return self._integers_of(self._text_between_brackets().split())

    def array(self, ndim: int) -> Array:
        """A vector (ndim 1) or a matrix (ndim 2), compressed or not: float32, or float64 from doubles and from text.

        Raises:
            NgsgdError: truncated, of another type, or a text matrix whose rows differ in length.
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
        """An archive's entry of type ``std::vector<int32>``, as alignments are; text: the rest of the line."""
        if not self.binary:
            line = self.line() or b""
            if b"_" in line:  # which Python lets stand within a number
                self.fail("expected integers")
            return self._integers_of(line.split())
        records = np.frombuffer(self.take(_LISTED.itemsize * self._length()), _LISTED)
        if (records["size"] != 4).any():
            self.fail("a number that is not an int32")
        return records["value"].astype(np.int32)

    def skip_listed_integers(self) -> None:
        """Goes beyond what `listed_integers` would read."""
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
        self._at += 1
        end = self._find(re.compile(rb"\]"), MAX_OBJECT)
        text = self._buffer[self._at : end]
        if end == len(self._buffer):
            self.fail("the file is truncated")
        self._at = end + 1
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
        # The lengths of the rows alone, since a list of all their words would take many times the file.
        lengths = {count for line in re.split(rb"[\n;]", text) if (count := len(line.split()))}
        if len(lengths) > 1:
            self.fail("a matrix whose rows differ in length")
        return values.reshape(-1, lengths.pop()) if lengths else np.zeros((0, 0))

    def _skip_space(self) -> bool:
        """Goes to the next byte that is not white space; whether there is one."""
        while True:
            if match := _NOT_SPACE.search(self._buffer, self._at):
                self._at = match.start()
                return True
            self._drop(len(self._buffer))
            if not self._have(1):
                return False

    def _find(self, pattern: re.Pattern[bytes], limit: int) -> int:
        """Where the pattern is next found in the buffer; its end where it is not, in the file or within the limit."""
        start = self._at
        while not (match := pattern.search(self._buffer, start)):
            had = len(self._buffer) - self._at
            if had > limit or self._have(had + 1) == had:
                return len(self._buffer)
            start = self._at + had
        return match.start()

    def _peek(self, n: int) -> bytes:
        self._have(n)
        return self._buffer[self._at : self._at + n]

    def _have(self, n: int) -> int:
        """Sees that n bytes are in the buffer, if the file has them; how many there are."""
        if (there := len(self._buffer) - self._at) < n:
            pieces = [self._buffer[self._at :]]
            self._drop(self._at)
            # A long line is read in ever larger pieces, so that it is not copied once a piece.
            while there < n and (piece := self._read(max(PIECE, there))):
                pieces.append(piece)
                there += len(piece)
            self._buffer, self._at = b"".join(pieces), 0
        return there

    def _drop(self, n: int) -> None:
        """Forgets the first n bytes of the buffer."""
        self._passed += n
        self._buffer, self._at = self._buffer[n:], max(0, self._at - n)

    def _read(self, n: int) -> bytes:
        try:
            piece = self._f.read(n)
        except (OSError, EOFError, zlib.error) as e:  # of a damaged gzip file
            self.fail(f"cannot be read: {e}")
        if self._left is not None:
            self._left -= len(piece)
            if self._left < 0:
                self.fail(f"it grows more than {MAX_EXPANSION}-fold; if that is right, unpack it first")
        return piece


@contextlib.contextmanager
def open_input(path: str | os.PathLike[str], error: type[NgsgdError] = DataError, offset: int = 0) -> Iterator[Input]:
    """A Kaldi file, from an offset on (bytes); gzipped where its name ends with ``.gz``.

    Raises:
        NgsgdError: of the given type: the file cannot be opened.
    """
    try:
        require_regular_file(path)
        f: Any = gzip.open(path) if os.fspath(path).endswith(".gz") else open(path, "rb")  # noqa: SIM115
    except OSError as e:
        raise error(f"{os.fspath(path)}: {e.strerror or e}") from None
    except ValueError as e:  # NUL
        raise error(f"{os.fspath(path)!r}: {e}") from None
    with f:
        if offset:
            try:
                f.seek(offset)
            except (OSError, OverflowError, ValueError, EOFError, zlib.error) as e:
                raise error(f"{os.fspath(path)}: no byte {offset} ({e})") from None
        size = os.stat(path).st_size
        yield Input(f, path, error, MAX_EXPANSION * size + MIN_LIMIT if os.fspath(path).endswith(".gz") else None)
