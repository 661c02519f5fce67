"""Kaldi's tables: archives, ``.scp`` files that point into them, and text files with a line an utterance."""

from __future__ import annotations

import io
import itertools
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ngsgd.errors import DataError
from ngsgd.files import resolve_path
from ngsgd.kaldi.stream import Array, Input, open_input

T = TypeVar("T")


def read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[str, str]]:
    """The first word and the rest of each line of a text file.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or has a word twice; the text names the line.
    """
    seen: set[str] = set()
    with open_input(path) as source:
        for number in itertools.count(1):
            if (line := source.line()) is None:
                return
            words = line.split(maxsplit=1)  # as bytes, where only ASCII has white space, as for Kaldi
            if not words:
                continue
            try:
                key, rest = words[0].decode("utf-8"), b"".join(words[1:]).rstrip().decode("utf-8")
            except UnicodeDecodeError:
                raise DataError(f"{os.fspath(path)}: line {number} is not UTF-8; convert the file") from None
            if key in seen:
                raise DataError(f"{os.fspath(path)}: {key} has two lines")
            seen.add(key)
            yield key, rest


def read_archive(
    path: str | os.PathLike[str], read: Callable[[Input], T], wanted: Callable[[str], bool] | None = None
) -> Iterator[tuple[str, T]]:
    """The entries of an archive, gzipped or not, one after the other: key and object.

    Args:
        path: of the archive.
        read: reads an object: `matrix` or `integers`.
        wanted: of an archive of integers, which keys are of interest; the others are passed over.

    Raises:
        DataError: the archive is truncated, or has objects of another type.
    """
    with open_input(path) as source:
        while not source.at_end():
            key = source.token()
            source.start()
            if wanted is None or wanted(key):
                yield key, read(source)
            else:
                source.skip_listed_integers()


def matrix(source: Input) -> Array:
    """Reads a matrix (rows, columns), for `read_archive`."""
    return source.array(2)


def integers(source: Input) -> npt.NDArray[np.int32]:
    """Reads a vector of integers, for `read_archive`."""
    return source.listed_integers()


def skip_integers(source: Input) -> None:
    """Passes over a vector of integers, for `read_archive` where only the keys are wanted."""
    source.skip_listed_integers()


class Script:
    """An ``.scp`` file: where each utterance's matrix lies.

    Args:
        path: of the file.
        root: the folder to which paths that do not exist as they stand are relative.
        allow_pipes: whether entries may be commands, which are then run.

    Raises:
        DataError: the file cannot be read, or an entry is a command and pipes are not allowed.
    """

    def __init__(self, path: str | os.PathLike[str], root: Path, *, allow_pipes: bool = False) -> None:
        self.path, self._root, self._allow_pipes = path, root, allow_pipes
        self.entries = dict(read_lines(path))
        for key, entry in self.entries.items():
            if not entry:
                raise DataError(f"{os.fspath(path)}: {key} points nowhere")
            if "|" in entry and not allow_pipes:
                raise DataError(
                    f"{os.fspath(path)}: the entry of {key} is a command ({entry:.60}), which is not run unless the "
                    "configuration has allow_pipes: true; copy-feats makes an archive of it"
                )

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, key: str) -> Array:
        """The matrix of an utterance (or of a speaker), of the rows and columns that a range in the entry selects.

        Raises:
            DataError: the entry points nowhere, or not at a matrix.
        """
        entry = self.entries[key]
        where = f"{os.fspath(self.path)}: {key}"
        entry, ranges = _split_range(entry, where)
        if entry.rstrip().endswith("|"):
            return _select(_from_command(entry.rstrip()[:-1], where), ranges, where)
        path, offset = _split_offset(entry)
        try:
            with open_input(resolve_path(path, self._root), offset=offset) as source:
                source.start()
                array = source.array(2)
        except DataError as e:
            raise DataError(f"{where}: {e}") from None
        return _select(array, ranges, where)


def _split_offset(entry: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.+):(\d{1,19})", entry)
    return (match[1], int(match[2])) if match else (entry, 0)


def _split_range(entry: str, where: str) -> tuple[str, list[tuple[int, int] | None]]:
    """An entry without its range ``[rows]`` or ``[rows,columns]``, and the first and last of each, or None for all."""
    if not entry.endswith("]"):
        return entry, []
    entry, _, text = entry[:-1].rpartition("[")
    ranges: list[tuple[int, int] | None] = []
    for part in text.split(","):
        if part in ("", ":"):
            ranges.append(None)
        elif match := re.fullmatch(r"(\d{1,9}):(\d{1,9})", part):
            ranges.append((int(match[1]), int(match[2])))
        else:
            raise DataError(f"{where}: {part!r} is no range such as 0:99")
    if len(ranges) > 2 or not entry:
        raise DataError(f"{where}: [{text}] is no range of rows and columns")
    return entry, ranges


def _select(array: Array, ranges: list[tuple[int, int] | None], where: str) -> Array:
    """The rows and columns that ranges name, whose ends count in; Kaldi lets the last row be a little beyond."""
    for axis, bounds in enumerate(ranges):
        if bounds is None:
            continue
        first, last = bounds
        slack = 3 if axis == 0 else 0
        if not first <= last < array.shape[axis] + slack or first >= array.shape[axis]:
            raise DataError(f"{where}: the range {first}:{last} is not within {array.shape[axis]}")
        array = array.take(range(first, min(last + 1, array.shape[axis])), axis)
    return array


def _from_command(command: str, where: str) -> Array:
    """The matrix that a shell command writes, as Kaldi's extended filenames have it; allowed by the configuration."""
    outcome = subprocess.run(command, shell=True, stdout=subprocess.PIPE, check=False)
    if outcome.returncode:
        raise DataError(f"{where}: the command {command!r} ended with status {outcome.returncode}")
    source = Input(io.BytesIO(outcome.stdout), f"{where}: output of {command!r}")
    source.start()
    return source.array(2)
