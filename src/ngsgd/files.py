"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STAMPED = 16 * 2**20  # bytes


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path`` that becomes ``path`` when the block ends well.

    The contents reach the disk before the name does. The temporary name is unique to the process, so that two
    writers of the same file (an old job that is still dying, say) cannot mix their bytes.

    Raises:
        OSError: the file cannot be written; nothing of it is left then, nor after an exception in the block.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{platform.node()}.{os.getpid()}.part"
    try:
        yield temporary
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException as e:
        temporary.unlink(missing_ok=True)
        if isinstance(e, OSError) and e.errno and not e.filename:  # a full disk, most often
            e.filename = os.fspath(path)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_abandoned(directory: str | os.PathLike[str], *, elsewhere: bool = False) -> None:
    """Removes the temporary files below ``directory`` of processes that no longer live.

    Args:
        directory: the folder.
        elsewhere: whether no process of another machine is writing there; else only files of this one's are removed.
    """
    for temporary in Path(directory).rglob(".*.part"):
        owner, _, pid = temporary.name.removesuffix(".part").rpartition(".")
        here = owner.endswith(f".{platform.node()}")
        if pid.isdecimal() and (not Path(f"/proc/{pid}").exists() if here else elsewhere):
            temporary.unlink(missing_ok=True)


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: keys sorted, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any) -> str:
    """Ten hexadecimal digits that stand for a value made of what JSON can hold."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:10]


def derived_seed(*parts: int | str) -> int:
    """A seed below 2**31 from any number of parts, such as the run's seed, an iteration and a job."""
    return int(hashlib.sha256(canonical_json(list(parts)).encode()).hexdigest()[:8], 16) & 0x7FFFFFFF


def require_regular_file(path: str | os.PathLike[str]) -> None:
    """Sees that a path is a regular file: reading from a pipe or a device may never end.

    Raises:
        OSError: it is another thing, or nothing.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a file", os.fspath(path))


def resolve_path(path: str | os.PathLike[str], root: Path) -> Path:
    """A path as it stands if something is there, or else below a root."""
    return Path(path) if os.path.exists(path) else root / path


def scp_targets(script: Path, root: Path) -> set[Path]:
    """The files that the entries of a Kaldi ``.scp`` point into, as far as they exist; empty where there is none.

    It looks at every line of every call's corpora, and so no closer than it must.
    """
    try:
        lines = script.read_bytes().splitlines()
    except OSError:
        return set()
    ends = {line.partition(b" ")[2].strip().partition(b"[")[0].rpartition(b":")[0] for line in lines}
    found = (resolve_path(os.fsdecode(end), root) for end in ends if end and b"\0" not in end)
    return {path for path in found if path.is_file()}


def file_stamp(path: str | os.PathLike[str], hashed: int = STAMPED) -> str:
    """Stands for the contents of a file; "missing" where there is none, which whoever reads it will complain of.

    A hash, or for a file above ``hashed`` bytes, which would take too long to hash at every call, size and time of
    change in seconds.
    """
    try:
        with open(path, "rb") as f:
            status = os.fstat(f.fileno())
            if status.st_size > hashed:
                return f"{status.st_size} {int(status.st_mtime)}"
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError:
        return "missing"
