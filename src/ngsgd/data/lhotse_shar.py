"""Reads folders in Lhotse's Shar format: shards of a manifest of cuts, and of a tar archive for each kind of data.

The members of an archive come in pairs, in the order of the cuts: the data, ``<cut>.npy`` say, and its description,
``<cut>.json``. Lhotse's own reader trusts types and sizes, and Python's ``tarfile`` can hang at damaged ones; the
archives are therefore parsed here, and their members are read into memory only.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from ngsgd.data.extractor import one_line
from ngsgd.data.lhotse_items import Drop, Items, read_fields
from ngsgd.data.lhotse_storage import MEMORY, register
from ngsgd.errors import DataError, UtteranceError
from ngsgd.files import require_regular_file

BLOCK = 512  # bytes
MAX_HEADER = 2**16  # bytes of a long name
MAX_META = 2**23  # bytes of a description
MAX_DATA = 2**30  # bytes of audio or an array
TYPES = {"recording": "Recording", "features": "Features"}  # types of fields that are not of the user's making
MANIFESTS = (".jsonl", ".jsonl.gz")


class Member(NamedTuple):
    """A file in a tar archive."""

    name: str
    position: int
    size: int


class Shard(NamedTuple):
    """The manifest of a shard, and its archives by the fields of a cut."""

    cuts: Path
    archives: dict[str, Path]


def shards(folder: Path) -> list[Shard]:
    """Returns the shards of a folder, in the order of their numbers.

    Raises:
        DataError: there are none, or the archives do not match them.
    """
    paths = sorted(folder.iterdir())
    found = {
        path.name.removeprefix("cuts").partition(".jsonl")[0]: Shard(path, {})
        for path in paths
        if path.name.startswith("cuts.") and path.name.endswith(MANIFESTS)
    }
    if not found:
        raise DataError(f"{folder}: no cuts.*.jsonl.gz in it; it is not in Lhotse's Shar format")
    for path in paths:
        if path.name.endswith(".tar"):
            field, dot, number = path.name.removesuffix(".tar").partition(".")
            if dot + number not in found:
                raise DataError(f"{path}: no cuts of this number in the folder")
            found[dot + number].archives[field] = path
    return list(found.values())


def names(folder: Path) -> list[str]:
    """Returns the names of all cuts.

    Raises:
        DataError: a manifest is damaged.
    """
    return [fields["id"] for shard in shards(folder) for fields in read_fields(shard.cuts)]


def read(folder: Path, first: int, last: int, wanted: Callable[[str], bool], items: Items, drop: Drop) -> Iterator[Any]:
    """Yields cuts with their data in memory; for the arguments see `Manifests.read`.

    Raises:
        DataError: a manifest is damaged.
    """
    start = 0
    for shard in shards(folder):
        if start >= last:
            return
        all_fields = list(read_fields(shard.cuts))
        if start + len(all_fields) > first:
            yield from _read_shard(shard, all_fields, range(first - start, last - start), wanted, items, drop)
        start += len(all_fields)


def _read_shard(
    shard: Shard,
    all_fields: list[dict[str, Any]],
    part: range,
    wanted: Callable[[str], bool],
    items: Items,
    drop: Drop,
) -> Iterator[Any]:
    archives = {field: (path, _pairs(path)) for field, path in shard.archives.items()}
    for index, fields in enumerate(all_fields[: part.stop]):
        found = {field: (path, _next(path, pairs)) for field, (path, pairs) in archives.items()}
        if index in part and wanted(name := fields["id"]):
            try:
                yield _fill(fields, found, items)
            except UtteranceError as e:
                drop(name, str(e))


def _next(path: Path, pairs: Iterator[tuple[Member, Member]]) -> tuple[Member, Member] | UtteranceError:
    """Returns the next pair of members, or the error that the cut is dropped for."""
    try:
        return next(pairs, None) or UtteranceError(f"{path}: it ends before this cut")
    except UtteranceError as e:
        return e


def _fill(
    fields: dict[str, Any], found: dict[str, tuple[Path, tuple[Member, Member] | UtteranceError]], items: Items
) -> Any:
    """Returns a cut with the data from the archives."""
    name = fields["id"]
    custom = fields.get("custom")
    for place in (fields, custom if isinstance(custom, dict) else {}):
        for field in [key for key, value in place.items() if _is_placeholder(value)]:
            del place[field]
    data = {}
    for field, (path, pair) in found.items():
        if isinstance(pair, UtteranceError):
            raise pair
        content, description = pair
        if os.path.splitext(content.name)[0] != name:
            raise UtteranceError(f"{path}: {content.name:.60} instead of the data of this cut")
        if not content.name.endswith(".nodata"):
            data[field] = _load(path, content, description, items)
            if type(data[field]).__name__ != TYPES.get(field, type(data[field]).__name__):
                raise UtteranceError(f"{path}: {content.name:.60} is not a {TYPES[field]}")
    cut = items.make(fields, "cut")
    if type(cut).__name__ != "MonoCut":
        raise UtteranceError(f"it is a {type(cut).__name__}; only a MonoCut can be read from this format")
    cut.recording, cut.features = data.pop("recording", cut.recording), data.pop("features", cut.features)
    cut.custom = (cut.custom or {}) | data
    return cut


def _is_placeholder(value: Any) -> bool:
    """Returns whether the value of a field is a manifest whose data is in an archive."""
    if not isinstance(value, dict):
        return False
    array = value.get("array", value)
    sources = value.get("sources")
    return (isinstance(array, dict) and array.get("storage_type") == "shar") or (
        isinstance(sources, list) and any(isinstance(s, dict) and s.get("type") == "shar" for s in sources)
    )


def _load(path: Path, content: Member, description: Member, items: Items) -> Any:
    """Returns the manifest of a recording or an array, with its data in memory."""
    from lhotse import Features, Recording
    from lhotse.array import deserialize_array

    where = f"{path}: {content.name:.60}"
    if content.size > MAX_DATA or description.size > MAX_META:
        raise UtteranceError(f"{where}: {content.size} bytes, more than {MAX_DATA}, or too long a description")
    try:
        with open(path, "rb") as f:
            data, text = (os.pread(f.fileno(), member.size, member.position) for member in (content, description))
        meta = json.loads(text)
        if not _is_placeholder(meta):
            raise UtteranceError(f"{where}: its description does not say that the data is in the archive")
        sources = meta.pop("sources", None)
        if sources:
            items.check(meta)
            source = {"type": "memory", "channels": sources[0]["channels"], "source": ""}
            recording = Recording.from_dict(meta | {"sources": [source]})
            recording.sources[0].source = data
            return recording
        array = meta.get("array", meta)
        kind = os.path.splitext(content.name)[1]
        if kind not in MEMORY:
            raise UtteranceError(f"{where}: only {', '.join(MEMORY)} are supported")
        array |= {"storage_type": register(kind, items.locations), "storage_path": "", "storage_key": data}
        return Features.from_dict(meta) if "num_features" in meta else deserialize_array(meta)
    except UtteranceError:
        raise
    except Exception as e:  # Lhotse raises various types for a malformed description
        raise UtteranceError(f"{where}: cannot be read ({one_line(e)})") from None


def _pairs(path: Path) -> Iterator[tuple[Member, Member]]:
    with open(path, "rb") as f:
        members = _members(path, f)
        for content, description in itertools.zip_longest(members, members):
            if description is None or description.name != f"{os.path.splitext(content.name)[0]}{_ending(content)}":
                raise UtteranceError(f"{path}: {content.name:.60} has no description")
            yield content, description


def _ending(content: Member) -> str:
    return ".nometa" if content.name.endswith(".nodata") else ".json"


def _members(path: Path, f: IO[bytes]) -> Iterator[Member]:
    """Yields the members of a tar archive of the formats ustar, GNU or pax, all of which must be regular files.

    Raises:
        UtteranceError: the archive is damaged, or has anything else.
    """
    require_regular_file(path)
    total, position, name = os.fstat(f.fileno()).st_size, 0, None
    while position + BLOCK <= total:
        head = os.pread(f.fileno(), BLOCK, position)
        if not head.strip(b"\0"):
            return
        try:
            size, checksum = (int(head[span].strip(b" \0") or b"0", 8) for span in (slice(124, 136), slice(148, 156)))
        except ValueError:
            raise UtteranceError(f"{path}: damaged at byte {position}") from None
        start = position + BLOCK
        position = start + -(-size // BLOCK) * BLOCK
        if sum(head[:148]) + 8 * ord(" ") + sum(head[156:]) != checksum or not 0 <= size <= total - start:
            raise UtteranceError(f"{path}: damaged or truncated at byte {start - BLOCK}")
        kind = head[156:157]
        if kind in b"xL" and kind != b"":
            if size > MAX_HEADER:
                raise UtteranceError(f"{path}: a name of {size} bytes")
            name = _long_name(os.pread(f.fileno(), size, start), kind) or name
            continue
        if kind not in (b"0", b"\0"):
            raise UtteranceError(f"{path}: a member at byte {start - BLOCK} is not a regular file")
        short = b"/".join(filter(None, (head[345:500].split(b"\0")[0], head[:100].split(b"\0")[0])))
        yield Member((short if name is None else name).decode("utf-8", "surrogateescape"), start, size)
        name = None


def _long_name(data: bytes, kind: bytes) -> bytes | None:
    """Returns the name in a header for long names; None if a pax header is about other things."""
    if kind == b"L":
        return data.rstrip(b"\0")
    for line in data.split(b"\n"):
        record = line.partition(b" ")[2]
        if record.startswith(b"path="):
            return record.removeprefix(b"path=")
    return None
