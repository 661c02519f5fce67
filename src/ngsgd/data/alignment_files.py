"""Alignments in files next to Lhotse's manifests: a folder of TextGrid files, or a CTM file."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ngsgd.data.extractor import one_line
from ngsgd.errors import DataError, UtteranceError
from ngsgd.files import require_regular_file
from ngsgd.kaldi.tables import BYTE_ORDER_MARK

MAX_TEXTGRID = 2**24  # bytes
MAX_LINE = 2**16  # bytes of a line of a CTM file
CHANNELS = {"1": 0, "A": 0, "2": 1, "B": 1}  # names of channels in CTM files


@dataclass(frozen=True)
class Segment:
    """A symbol from ``start`` to ``start`` + ``duration`` (seconds)."""

    symbol: str
    start: float
    duration: float


class AlignmentFiles(Protocol):
    """Alignments by the names of utterances or recordings."""

    def find(self, name: str, channel: int) -> Sequence[Segment] | None:
        """Returns the alignment of an utterance or recording; None if there is none.

        Raises:
            UtteranceError: the alignment is damaged.
        """
        ...


def open_alignments(path: Path, tier: str) -> AlignmentFiles:
    """Opens a folder with a file ``<name>.TextGrid`` for each utterance or recording, or a CTM file.

    Args:
        path: the folder or file.
        tier: tier of the TextGrid files, with or without a plural s.

    Raises:
        DataError: it is neither.
    """
    if path.is_dir():
        return TextGrids(path, tier)
    if path.name.endswith(".ctm"):
        return Ctm(path)
    raise DataError(f"{path}: neither a folder of .TextGrid files nor a .ctm file")


class TextGrids:
    """Alignments in TextGrid files; see `open_alignments`."""

    def __init__(self, folder: Path, tier: str) -> None:
        self._folder, self._tier = folder, tier

    def find(self, name: str, channel: int) -> Sequence[Segment] | None:
        """Returns the intervals of the file of that name; see `AlignmentFiles`."""
        path = self._folder / f"{name}.TextGrid"
        if os.sep in name or not path.exists():
            return None
        try:
            from praatio import textgrid
        except ImportError:
            raise UtteranceError(
                f"{path}: praatio, which reads TextGrid files, is not installed; pip install 'ngsgd[textgrid]'"
            ) from None
        try:
            require_regular_file(path)
            if path.stat().st_size > MAX_TEXTGRID:
                raise UtteranceError(f"{path}: more than {MAX_TEXTGRID} bytes")
            grid = textgrid.openTextgrid(os.fspath(path), includeEmptyIntervals=False, reportingMode="silence")
            names = [tier for tier in grid.tierNames if tier.lower() in (self._tier, f"{self._tier}s")]
            if len(names) != 1:
                raise UtteranceError(f"{path}: no tier {self._tier} or {self._tier}s among {grid.tierNames!s:.200}")
            entries = grid.getTier(names[0]).entries
            return [Segment(entry.label, float(entry.start), float(entry.end - entry.start)) for entry in entries]
        except UtteranceError:
            raise
        except Exception as e:  # praatio raises various types for a damaged file
            raise UtteranceError(f"{path}: not a TextGrid file ({one_line(e)})") from None


class Ctm:
    """Alignments in a CTM file, with lines ``recording channel start duration symbol``; see `open_alignments`.

    Only the places of each recording's lines are kept in memory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[bytes, list[tuple[int, int]]] = defaultdict(list)
        last, position = None, 0
        try:
            require_regular_file(path)
            with open(path, "rb") as f:
                if f.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK:
                    position = len(BYTE_ORDER_MARK)
                f.seek(position)
                while line := f.readline(MAX_LINE):
                    if len(line) == MAX_LINE:
                        raise DataError(f"{path}: a line of more than {MAX_LINE} bytes")
                    name = line.split(maxsplit=1)[0] if line.strip() else None
                    if name is not None:
                        places = self._places[name]
                        if name == last:
                            places[-1] = (places[-1][0], position + len(line))
                        else:
                            places.append((position, position + len(line)))
                        last = name
                    position += len(line)
        except OSError as e:
            raise DataError(f"{path}: cannot be read: {e}") from None

    def find(self, name: str, channel: int) -> Sequence[Segment] | None:
        """Returns the lines of that recording, of the channel if there are several; see `AlignmentFiles`."""
        places = self._places.get(name.encode("utf-8", "surrogateescape"))
        if places is None:
            return None
        by_channel: dict[str, list[Segment]] = defaultdict(list)
        with open(self._path, "rb") as f:
            for start, end in places:
                f.seek(start)
                for line in f.read(end - start).decode("utf-8", "replace").split("\n"):
                    words = line.split()
                    if not words:
                        continue
                    try:
                        # A line without a symbol is silence; a sixth word is the confidence.
                        segment = Segment(words[4] if len(words) > 4 else "", float(words[2]), float(words[3]))
                    except (ValueError, IndexError):
                        raise UtteranceError(
                            f"{self._path}: {line!r:.60} is not a line of recording, channel, start, duration, symbol"
                        ) from None
                    by_channel[words[1]].append(segment)
        if len(by_channel) == 1:
            return next(iter(by_channel.values()))
        return [s for key, own in by_channel.items() if CHANNELS.get(key, -1) == channel for s in own] or None
