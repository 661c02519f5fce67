"""Reads Kaldi's tables: archives, ``.scp`` files that point into them, and text files with one line per utterance."""

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
    """Yields the first word and the rest of each line of a text file; empty lines are skipped.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or has two lines with the same first word.
    """
    seen: set[str] = set()
    with open_input(path) as source:
        for number in itertools.count(1):
            if (line := source.line()) is None:
                return
            words = line.split(maxsplit=1)  # on bytes only ASCII white space splits, as in Kaldi
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
    """Yields key and object of each entry of an archive, gzipped or not.

    Args:
        path: the archive.
        read: reads an object: `matrix`, `integers` or `skip_integers`.
        wanted: selects keys, for archives of integers only; the other entries are skipped. None for all.

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
    """Skips a vector of integers, for `read_archive` when only the keys are needed."""
    source.skip_listed_integers()


class Script:
    """An ``.scp`` file, which maps each utterance (or speaker) to the location of its matrix.

    Args:
        path: the file.
        root: folder for relative paths that do not exist in the working directory.
        allow_pipes: whether entries may be commands, which `read` then runs.

    Raises:
        DataError: the file cannot be read, or an entry is a command and pipes are not allowed.
    """

    def __init__(self, path: str | os.PathLike[str], root: Path, *, allow_pipes: bool = False) -> None:
        self.path, self._root, self._allow_pipes = path, root, allow_pipes
        self.entries = dict(read_lines(path))
        for key, entry in self.entries.items():
            if not entry:
                raise DataError(f"{os.fspath(path)}: {key} has no location")
            if "|" in entry and not allow_pipes:
                raise DataError(
                    f"{os.fspath(path)}: the entry of {key} is a command ({entry:.60}), which is not run unless the "
                    "configuration has allow_pipes: true; or write its output to an archive with copy-feats"
                )

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, key: str) -> Array:
        """Reads the matrix of an utterance (or speaker), restricted to the range of rows and columns in its entry.

        Raises:
            DataError: the matrix cannot be read, or the range is invalid.
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
    """Splits off the range ``[rows]`` or ``[rows,columns]`` of an entry: first and last of each, or None for all."""
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
            raise DataError(f"{where}: {part!r} is not a range such as 0:99")
    if len(ranges) > 2 or not entry:
        raise DataError(f"{where}: [{text}] is not a range of rows and columns")
    return entry, ranges


def _select(array: Array, ranges: list[tuple[int, int] | None], where: str) -> Array:
    """Selects rows and columns by inclusive ranges; as in Kaldi, the last row may be up to 3 too high."""
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
    """Runs a shell command (a Kaldi extended filename, if allow_pipes is set) and reads the matrix that it writes."""
    outcome = subprocess.run(command, shell=True, stdout=subprocess.PIPE, check=False)
    if outcome.returncode:
        raise DataError(f"{where}: the command {command!r} ended with status {outcome.returncode}")
    source = Input(io.BytesIO(outcome.stdout), f"{where}: output of {command!r}")
    source.start()
    return source.array(2)
