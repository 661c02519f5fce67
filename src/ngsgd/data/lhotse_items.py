"""Makes Lhotse's objects from the items of its manifests.

A manifest can name commands, URLs and pickles, which Lhotse would run or load. Each item is therefore checked before it
reaches Lhotse, and only audio and arrays in files are accepted.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ngsgd.data.extractor import one_line
from ngsgd.data.lhotse_storage import READERS, register
from ngsgd.errors import DataError, UtteranceError
from ngsgd.files import require_regular_file
from ngsgd.kaldi.tables import Locations

MAX_LINE = 2**23  # bytes of one item
MAX_EXPANSION = 100  # largest uncompressed size of a gzipped manifest, relative to its size
RATES = (1000, 200_000)  # Hz
FACTORS = (0.1, 10.0)
MAX_KERNEL = 2**24  # elements of the filter that changes one sampling rate into another
AUDIO = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".sph")

#: Called with the name of an utterance that cannot be used, and the reason.
Drop = Callable[[str, str], None]


@dataclass(frozen=True)
class Items:
    """Makes Lhotse's objects from the items of manifests.

    Attributes:
        locations: how paths are looked up; with ``allow_pipes`` everything that an item names is opened, including
            commands and URLs.
    """

    locations: Locations

    def make(self, fields: dict[str, Any], kind: str) -> Any:
        """Returns a cut, a recording or a supervision.

        Raises:
            UtteranceError: the item is malformed, or names something that would be run or fetched.
        """
        import lhotse
        from lhotse.serialization import deserialize_item

        known = {
            "cut": lhotse.cut.Cut, "recording": lhotse.Recording, "supervision": lhotse.SupervisionSegment,
        }  # fmt: skip
        name = fields["id"]
        try:
            if not self.locations.allow_pipes:
                self.check(fields)
            item = deserialize_item(fields)
        except UtteranceError:
            raise
        except Exception as e:  # Lhotse raises various types for a malformed item
            raise UtteranceError(f"not a {kind} of a Lhotse manifest ({one_line(e)})") from None
        if not isinstance(item, known[kind]) or item.id != name:
            raise UtteranceError(f"a {type(item).__name__}, expected a {kind}")
        return item

    def check(self, fields: Any) -> None:
        """Checks that only arrays and audio in files are named, and resolves their paths in place.

        Raises:
            UtteranceError: something else is named.
        """
        if isinstance(fields, list):
            for value in fields:
                self.check(value)
        if not isinstance(fields, dict):
            return
        if "storage_type" in fields:
            self._check_storage(fields)
        sources = fields.get("sources", [])
        for source in sources if isinstance(sources, list) else [sources]:
            if not isinstance(source, dict) or source.get("type") != "file":
                raise UtteranceError("an audio source that is not a file; it is only opened with allow_pipes: true")
            source["source"] = os.fspath(self.locations.resolve(_checked_path(source.get("source"))))
            if not source["source"].lower().endswith(AUDIO):
                raise UtteranceError(f"{source['source']!r:.60}: audio must be one of {', '.join(AUDIO)}")
        _check_rate(fields.get("sampling_rate", RATES[0]))
        for transform in fields.get("transforms") or []:
            _check_transform(transform)
        for value in fields.values():
            self.check(value)

    def _check_storage(self, fields: dict[str, Any]) -> None:
        kind = fields["storage_type"]
        if not isinstance(kind, str) or kind not in READERS:
            raise UtteranceError(
                f"storage of type {kind!r:.60}; only {', '.join(READERS)} are supported, convert it with "
                "CutSet.copy_feats"
            )
        path = _checked_path(fields.get("storage_path"))
        # The place of a Kaldi matrix is a path and an offset, which its reader resolves.
        is_place = kind == "kaldiio" and not path.endswith(".scp")
        fields["storage_path"] = path if is_place else os.fspath(self.locations.resolve(path))
        _checked_path(fields.get("storage_key"))
        fields["storage_type"] = register(kind, self.locations)


def _checked_path(path: Any) -> str:
    if not isinstance(path, str) or "://" in path or path.startswith(("pipe:", "-")) or "|" in path or "\0" in path:
        raise UtteranceError(f"{path!r:.60} is not the path of a file; it is only opened with allow_pipes: true")
    return path


def _check_rate(rate: Any) -> None:
    if not isinstance(rate, int) or not RATES[0] <= rate <= RATES[1]:
        raise UtteranceError(f"sampling rate {rate!r:.60}, expected {RATES[0]} - {RATES[1]} Hz")


def _check_transform(transform: Any) -> None:
    name, values = transform["name"], transform["kwargs"]
    if name == "Resample":
        rates = [values["source_sampling_rate"], values["target_sampling_rate"]]
        for rate in rates:
            _check_rate(rate)
        if math.prod(rates) // math.gcd(*rates) ** 2 > MAX_KERNEL:
            raise UtteranceError(f"resampling from {rates[0]} to {rates[1]} Hz takes too much memory")
    elif name in ("Speed", "Tempo", "Volume"):
        factor = values.get("factor", 1.0)
        if not isinstance(factor, int | float) or not FACTORS[0] <= factor <= FACTORS[1]:
            raise UtteranceError(f"{name} with a factor of {factor!r:.60}, expected {FACTORS[0]} - {FACTORS[1]}")
    else:
        raise UtteranceError(f"audio transform {name!r:.60}; only Resample, Speed, Tempo and Volume are supported")


def read_fields(path: Path, first: int = 0, last: int | None = None) -> Iterator[dict[str, Any]]:
    """Yields the items of a manifest, ``.jsonl`` or ``.jsonl.gz``, as their fields, from ``first`` to ``last`` - 1.

    Raises:
        DataError: the file is damaged: it expands too far, or a line is not a JSON object with a name.
    """
    for number, raw in enumerate(_lines(path)):
        if last is not None and number >= last:
            return
        if number < first:
            continue
        where = f"{path}: line {number + 1}"
        try:
            fields = json.loads(raw)
        except (ValueError, RecursionError) as e:
            raise DataError(f"{where}: not JSON ({e})") from None
        if not isinstance(fields, dict) or not isinstance(fields.get("id"), str):
            raise DataError(f"{where}: not an item of a Lhotse manifest with a name")
        yield fields


def _lines(path: Path) -> Iterator[bytes]:
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise DataError(f"{path}: not a .jsonl or .jsonl.gz manifest; convert it with lhotse copy")
    try:
        require_regular_file(path)
        left = max(2**24, MAX_EXPANSION * path.stat().st_size)
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as f:
            while line := f.readline(MAX_LINE):
                left -= len(line)
                if left < 0:
                    raise DataError(f"{path}: it expands more than {MAX_EXPANSION}-fold; unpack it first")
                if len(line) == MAX_LINE:
                    raise DataError(f"{path}: a line of more than {MAX_LINE} bytes")
                if line.strip():
                    yield line
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"{path}: cannot be read: {e}") from None
