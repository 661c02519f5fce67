"""Reads Kaldi's tables: archives, ``.scp`` files that point into them, and text files with one line per utterance."""

from __future__ import annotations

import io
import itertools
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ngsgd.errors import DataError
from ngsgd.files import map_path, resolve_path
from ngsgd.kaldi.stream import Array, Input, open_input

T = TypeVar("T")

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
WHITE_SPACE = " \t\n\r\v\f"  # Kaldi's own; other spaces of Unicode are parts of words


@dataclass(frozen=True)
class Locations:
    """How the locations in ``.scp`` files and Lhotse manifests are looked up.

    Attributes:
        root: folder for relative paths that do not exist in the working directory, and in which commands run.
        path_map: replacements of leading folders, for paths of another machine.
        allow_pipes: whether entries may be commands, which are then run.
    """

    root: Path
    path_map: Mapping[str, str] = field(default_factory=dict, hash=False)
    allow_pipes: bool = False

    def resolve(self, path: str) -> Path:
        """Returns where a file is: its path as it is if it exists, otherwise relative to the root."""
        return resolve_path(map_path(path, self.path_map), self.root)

    def map_command(self, command: str) -> str:
        """Replaces the starts of paths in a shell command."""
        return re.sub(r"""[^\s:='"|<>]+""", lambda word: map_path(word[0], self.path_map), command)


def split_words(text: str) -> list[str]:
    """Splits text into words as Kaldi does, at ASCII white space only."""
    return [word for word in re.split(f"[{WHITE_SPACE}]+", text) if word]


def read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[str, str]]:
    """Yields the first word and the rest of each line of a text file; empty lines are skipped.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or has two lines with the same first word.
    """
    with open_input(path) as source:
        yield from read_lines_of(source, path)


def read_lines_of(source: Input, path: str | os.PathLike[str]) -> Iterator[tuple[str, str]]:
    """Yields the lines of a text file that is open; otherwise like `read_lines`."""
    seen: set[str] = set()
    for number in itertools.count(1):
        if (line := source.line()) is None:
            return
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
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
        yield from read_entries(source, read, wanted)


def read_entries(
    source: Input, read: Callable[[Input], T], wanted: Callable[[str], bool] | None = None
) -> Iterator[tuple[str, T]]:
    """Yields key and object of each entry of an archive that is open; otherwise like `read_archive`."""
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
        locations: how its entries are looked up.
        source: the open file; None to open ``path``.

    Raises:
        DataError: the file cannot be read, or an entry is a command and pipes are not allowed.
    """

    def __init__(self, path: str | os.PathLike[str], locations: Locations, source: Input | None = None) -> None:
        self.path, self._locations = path, locations
        self.entries = dict(read_lines(path) if source is None else read_lines_of(source, path))
        for key, entry in self.entries.items():
            if not entry:
                raise DataError(f"{os.fspath(path)}: {key} has no location")
            if "|" in entry and not locations.allow_pipes:
                raise DataError(
                    f"{os.fspath(path)}: the entry of {key} is a command ({entry:.60}), which is not run unless the "
                    "configuration has allow_pipes: true (--allow-pipes of ngsgd compute); or write its output to an "
                    "archive with copy-feats"
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
        location, ranges = _split_range(entry, where)
        if location.rstrip().endswith("|"):
            command = self._locations.map_command(location.rstrip()[:-1])
            return _select(_from_command(command, self._locations.root, where), ranges, where)
        return read_location(entry, self._locations, where)


def read_location(location: str, locations: Locations, where: str) -> Array:
    """Reads the matrix at a location as in an ``.scp`` file, ``file:offset[rows,columns]``; it is never a command.

    Args:
        location: the location.
        locations: how it is looked up.
        where: name of the matrix in errors.

    Raises:
        DataError: the matrix cannot be read, or the range is invalid.
    """
    location, ranges = _split_range(location, where)
    name, offset = _split_offset(location)
    path = locations.resolve(name)
    if not path.exists():
        raise DataError(
            f"{where}: {path}: no such file; if it is a path of another machine, replace its start by "
            "path_map (--path-map of ngsgd compute)"
        )
    try:
        with open_input(path, offset=offset) as source:
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


def _from_command(command: str, folder: Path, where: str) -> Array:
    """Runs a shell command (a Kaldi extended filename, if allow_pipes is set) and reads the matrix that it writes."""
    outcome = subprocess.run(command, shell=True, stdout=subprocess.PIPE, cwd=folder, check=False)
    if outcome.returncode:
        raise DataError(f"{where}: the command {command!r} ended with status {outcome.returncode}")
    source = Input(io.BytesIO(outcome.stdout), f"{where}: output of {command!r}")
    source.start()
    return source.array(2)
