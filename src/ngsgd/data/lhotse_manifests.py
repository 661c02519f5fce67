"""Reads Lhotse's manifests: cuts, or recordings and supervisions, from which cuts are made.

Lhotse takes a millisecond to make an object of an item, so that it gets only the items that are asked for: for the
names of the others their JSON text is enough.
"""

from __future__ import annotations

import copy
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ngsgd.data import lhotse_shar
from ngsgd.data.extractor import one_line
from ngsgd.data.lhotse_items import Drop, Items, read_fields
from ngsgd.errors import DataError, UtteranceError


@dataclass(frozen=True)
class Manifests:
    """Manifests of the training or test data: cuts, a folder in the Shar format, or recordings and supervisions.

    A supervision becomes a cut of its name; the cuts are in the order of the recordings.
    """

    cuts: Path | None
    recordings: Path | None
    supervisions: Path | None

    def names(self) -> list[str]:
        """Returns the names of the cuts.

        Raises:
            DataError: a manifest is damaged.
        """
        if self.cuts:
            is_shar = self.cuts.is_dir()
            return lhotse_shar.names(self.cuts) if is_shar else [fields["id"] for fields in read_fields(self.cuts)]
        names = [name for own in self._supervisions.values() for name in own]
        if not names:
            raise DataError(f"{self.supervisions}: no cuts can be made from it and {self.recordings}")
        return names

    def read(self, first: int, last: int, wanted: Callable[[str], bool], items: Items, drop: Drop) -> Iterator[Any]:
        """Yields those of the cuts from the position ``first`` to ``last`` - 1 whose names are wanted.

        Args:
            first, last: positions in `names`.
            wanted: selects names.
            items: makes the cuts.
            drop: called with the name of each cut that cannot be made, and the reason.

        Raises:
            DataError: a manifest is damaged.
        """
        if self.cuts is None:
            yield from self._trimmed(first, last, wanted, items, drop)
            return
        if self.cuts.is_dir():
            yield from lhotse_shar.read(self.cuts, first, last, wanted, items, drop)
            return
        for fields in read_fields(self.cuts, first, last):
            if wanted(name := fields["id"]):
                try:
                    yield items.make(fields, "cut")
                except UtteranceError as e:
                    drop(name, str(e))

    @functools.cached_property
    def _supervisions(self) -> dict[str, list[str]]:
        """The names of the supervisions of each recording; those without a recording come last."""
        assert self.recordings is not None
        assert self.supervisions is not None
        found: dict[str, list[str]] = {fields["id"]: [] for fields in read_fields(self.recordings)}
        for fields in read_fields(self.supervisions):
            found.setdefault(_recording_of(fields), []).append(fields["id"])
        return found

    def _trimmed(self, first: int, last: int, wanted: Callable[[str], bool], items: Items, drop: Drop) -> Iterator[Any]:
        """Yields cuts that are made from recordings and supervisions."""
        assert self.recordings is not None
        assert self.supervisions is not None
        own: dict[str, set[str]] = {}
        position = 0
        for recording, names in self._supervisions.items():
            chosen = {name for i, name in enumerate(names, position) if first <= i < last and wanted(name)}
            position += len(names)
            if chosen:
                own[recording] = chosen
        fields_of = {fields["id"]: fields for fields in read_fields(self.recordings) if fields["id"] in own}
        supervisions = defaultdict(list)
        for fields in read_fields(self.supervisions):
            if _recording_of(fields) in own:
                supervisions[_recording_of(fields)].append(fields)
        for recording, chosen in own.items():
            for fields in supervisions[recording]:
                if (name := fields["id"]) in chosen:
                    try:
                        if recording not in fields_of:
                            raise UtteranceError(f"its recording is not in {self.recordings}")
                        yield _trim(fields_of[recording], fields, items)
                    except UtteranceError as e:
                        drop(name, str(e))


def _trim(recording: dict[str, Any], supervision: dict[str, Any], items: Items) -> Any:
    """Returns the part of a recording that a supervision describes, as a cut."""
    segment = items.make(supervision, "supervision")
    try:
        # Making an object changes its fields, which other supervisions need, too.
        whole = items.make(copy.deepcopy(recording), "recording").to_cut()
        whole.supervisions = [segment]
        (cut,) = whole.trim_to_supervisions(keep_overlapping=False)
    except UtteranceError:
        raise
    except Exception as e:  # Lhotse raises various types for manifests that do not match
        raise UtteranceError(f"no cut can be made of it and its recording ({one_line(e)})") from None
    return cut


def _recording_of(fields: dict[str, Any]) -> str:
    return str(fields.get("recording_id"))
