"""Kaldi's rspecifiers and wspecifiers, such as ``scp:feats.scp`` and ``ark,t:-``: how programs name tables.

Source: ``util/kaldi-table.cc`` (``ClassifyRspecifier``, ``ClassifyWspecifier``).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from ngsgd.errors import DataError
from ngsgd.files import atomic_write
from ngsgd.kaldi.output import Output
from ngsgd.kaldi.stream import Array, Input, open_input

STANDARD_STREAM = "-"

#: Options that change nothing here: how often a key is asked for, sorting, reading ahead, missing entries, flushing.
_READING = {"o", "no", "p", "np", "s", "ns", "cs", "ncs", "bg", "t", "b"}
_WRITING = {"f", "nf", "p", "b", "t"}


@dataclass(frozen=True)
class Rspecifier:
    """A table to be read.

    Attributes:
        is_script: whether it is an ``.scp`` file instead of an archive.
        path: of the file; ``-`` for standard input.
    """

    is_script: bool
    path: str

    @classmethod
    def parse(cls, text: str) -> Rspecifier:
        """Parses an rspecifier, or a file name: ``.scp`` files are scripts, other files and ``-`` are archives.

        Raises:
            DataError: it is not an rspecifier, or names a command.
        """
        options, path = _split(text, _READING)
        if len({"ark", "scp"} & options) == 2:
            raise DataError(f"{text!r:.100}: ark or scp can be read, not both")
        return cls("scp" in options if options else path.endswith(".scp"), path)


@dataclass(frozen=True)
class Wspecifier:
    """A table to be written.

    Attributes:
        archive: path of the archive; ``-`` for standard output.
        script: path of an ``.scp`` file that points into it, or None.
        is_text: whether the archive is in text format.
    """

    archive: str
    script: str | None
    is_text: bool

    @classmethod
    def parse(cls, text: str) -> Wspecifier:
        """Parses a wspecifier, or the name of an archive.

        Raises:
            DataError: it is not a wspecifier, names a command, or has a script without an archive or one on a pipe.
        """
        options, path = _split(text, _WRITING)
        if not options:
            return cls(path, None, False)
        if "ark" not in options:
            raise DataError(
                f"{text!r:.100}: an .scp file can only be written together with its archive: ark,scp:A.ark,A.scp"
            )
        if "scp" not in options:
            return cls(path, None, "t" in options)
        if text.index("scp") < text.index("ark"):
            raise DataError(f"{text!r:.100}: the archive comes first: ark,scp:A.ark,A.scp")
        archive, comma, script = path.partition(",")
        if not comma or not archive or not script:
            raise DataError(f"{text!r:.100}: expected the names of an archive and of an .scp file: ark,scp:A.ark,A.scp")
        if STANDARD_STREAM in (archive, script):
            raise DataError(f"{text!r:.100}: an .scp file cannot point into a pipe; name two files")
        return cls(archive, script, "t" in options)


def _split(text: str, others: set[str]) -> tuple[set[str], str]:
    """Splits a specifier into its options and its path; a mere path has no options."""
    head, colon, path = text.partition(":")
    options = set(head.split(","))
    if not colon or not options & {"ark", "scp"} or not options <= {"ark", "scp", *others}:
        options, path = set(), text
    if "|" in path:
        raise DataError(
            f"{text!r:.100}: commands are not run here; write the output to a file, or use a pipe of the shell"
        )
    if not path:
        raise DataError(f"{text!r:.100}: no file name; standard input and output are -")
    return options, path


@contextlib.contextmanager
def open_archive_input(path: str) -> Iterator[Input]:
    """Opens an archive, a pipe, or standard input for ``-``.

    Raises:
        DataError: the file cannot be opened.
        OSError: the pipe cannot be opened.
    """
    if path == STANDARD_STREAM:
        yield Input(sys.stdin.buffer, "standard input")
    elif Path(path).exists() and not Path(path).is_file():  # a pipe, such as a shell's <(command)
        with open(path, "rb") as f:
            yield Input(f, path)
    else:
        with open_input(path) as source:
            yield source


class ArchiveWriter:
    """Writes matrices as an archive, used as a context manager.

    Files appear whole, the archive before the ``.scp`` file. Entries for standard output are passed on at once.

    Args:
        specifier: of the table.
    """

    def __init__(self, specifier: Wspecifier) -> None:
        self._specifier = specifier
        self._files = contextlib.ExitStack()
        self._entries: list[str] = []
        self._offset = 0

    def __enter__(self) -> ArchiveWriter:
        if self._specifier.archive == STANDARD_STREAM:
            self._f: IO[bytes] = sys.stdout.buffer
        else:
            temporary = self._files.enter_context(atomic_write(self._specifier.archive))
            self._f = self._files.enter_context(open(temporary, "wb"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, trace)
        if kind is None and self._specifier.script is not None:
            with atomic_write(self._specifier.script) as temporary:
                temporary.write_text("".join(self._entries), encoding="utf-8")

    def write(self, key: str, matrix: Array) -> None:
        """Writes one matrix.

        Raises:
            OSError: the archive cannot be written, or the reader of the pipe has ended.
        """
        out = Output(binary=not self._specifier.is_text)
        out.array(matrix)
        start, body = key.encode() + b" ", out.bytes()
        self._f.write(start + body)
        if self._specifier.archive == STANDARD_STREAM:
            self._f.flush()
        archive = os.fspath(Path(self._specifier.archive))
        self._entries.append(f"{key} {archive}:{self._offset + len(start)}\n")
        self._offset += len(start) + len(body)
