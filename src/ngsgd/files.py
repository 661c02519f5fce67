"""Atomic file writes, hashes of values and files, derived seeds, and look-up of paths."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SCP_END = re.compile(rb"(:\d+)?(\[[^\[\]]*\])?$")  # offset and range after the file in an entry of an .scp
MAX_HASHED_BYTES = 16 * 2**20  # bytes; larger files are not hashed


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path next to ``path``, which is renamed to ``path`` when the block succeeds.

    The contents are synced to disk before the file is renamed. The temporary name is unique to the process, so that two
    writers of the same file, such as an old job that has not ended yet, cannot mix their output. A device or a pipe is
    never replaced: then ``path`` itself is yielded, which is written through.

    Raises:
        OSError: the file cannot be written. The temporary file is removed then, as after an exception in the block.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{platform.node()}.{os.getpid()}.part"
    try:
        yield temporary
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException as e:
        temporary.unlink(missing_ok=True)
        if isinstance(e, OSError) and e.errno and not e.filename:  # writes to a full disk raise without the name
            e.filename = os.fspath(path)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file atomically, as UTF-8."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_abandoned(directory: str | os.PathLike[str], *, elsewhere: bool = False) -> None:
    """Removes the temporary files below ``directory`` whose processes have ended.

    Args:
        directory: the folder.
        elsewhere: whether to remove all those of other machines, too; only safe if no process there is writing.
    """
    for temporary in Path(directory).rglob(".*.part"):
        owner, _, pid = temporary.name.removesuffix(".part").rpartition(".")
        is_local = owner.endswith(f".{platform.node()}")
        if pid.isdecimal() and (not Path(f"/proc/{pid}").exists() if is_local else elsewhere):
            temporary.unlink(missing_ok=True)


def canonical_json(value: Any) -> str:
    """Returns the canonical JSON text of a value: keys sorted, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any) -> str:
    """Returns the first ten hexadecimal digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:10]


def derived_seed(*parts: int | str) -> int:
    """Derives a seed below 2**31 from any number of parts, such as the run's seed, an iteration and a job."""
    return int(hashlib.sha256(canonical_json(list(parts)).encode()).hexdigest()[:8], 16) & 0x7FFFFFFF


def require_regular_file(path: str | os.PathLike[str]) -> None:
    """Checks that a path is a regular file, since reading from a pipe or a device may never end.

    Raises:
        OSError: the path does not exist or is not a regular file.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a file", os.fspath(path))


def resolve_path(path: str | os.PathLike[str], root: Path) -> Path:
    """Returns the path unchanged if it exists, otherwise relative to ``root``."""
    return Path(path) if os.path.exists(path) else root / path


def expand_path(path: str) -> str:
    """Expands ``~`` and environment variables in a path that a user wrote."""
    return os.path.expandvars(os.path.expanduser(path))


def map_path(path: str, path_map: Mapping[str, str]) -> str:
    """Replaces the start of a path.

    Args:
        path: path of a file, perhaps as it was on another machine.
        path_map: replacements of leading folders; the longest that matches counts.
    """
    for old in sorted(path_map, key=len, reverse=True):
        folder = old.rstrip("/")
        if path == folder or path.startswith(folder + "/"):
            return path_map[old] + path[len(folder) :]
    return path


def scp_targets(script: Path, root: Path, path_map: Mapping[str, str]) -> set[Path]:
    """Returns the existing files that the entries of a Kaldi ``.scp`` point into; empty if there is no script.

    Every call of the workflow does this for each line of its corpora, so entries are parsed only roughly, for speed.
    """
    try:
        lines = script.read_bytes().splitlines()
    except OSError:
        return set()
    entries = {words[1].rstrip() for line in lines if len(words := line.split(maxsplit=1)) == 2}
    ends = {SCP_END.sub(b"", entry) for entry in entries if b"|" not in entry}
    found = (resolve_path(map_path(os.fsdecode(end), path_map), root) for end in ends if end and b"\0" not in end)
    return {path for path in found if path.is_file()}


def file_stamp(path: str | os.PathLike[str], hashed: int = MAX_HASHED_BYTES) -> str:
    """Returns a fingerprint of a file's contents: its SHA-256, or "missing" if it cannot be read.

    Hashing files larger than ``hashed`` bytes in every call would take too long; their fingerprint is size and
    modification time in seconds. A missing file is reported by the code that reads it.
    """
    try:
        with open(path, "rb") as f:
            status = os.fstat(f.fileno())
            if status.st_size > hashed:
                return f"{status.st_size} {int(status.st_mtime)}"
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError:
        return "missing"
