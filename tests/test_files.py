from __future__ import annotations

import os
import platform
import stat
from pathlib import Path

import pytest

from ngsgd.errors import NgsgdError
from ngsgd.files import atomic_write, canonical_json, derived_seed, file_stamp, remove_abandoned, write_text
from ngsgd.locks import RunLock


def test_atomic_write_never_leaves_a_partial_file(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    with atomic_write(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
        inode = temporary.stat().st_ino
    assert path.read_text() == "first"
    assert path.stat().st_ino == inode  # renamed, not copied

    def interrupted() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("sec")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def test_only_temporary_files_of_dead_processes_are_removed(tmp_path: Path) -> None:
    host = platform.node()
    living = tmp_path / f".a.{host}.{os.getpid()}.part"
    dead = tmp_path / "deep" / f".b.safetensors.{host}.{2**22 + 1}.part"
    elsewhere = tmp_path / ".c.another-host.1.part"
    result = tmp_path / "d.part"
    for path in (living, dead, elsewhere, result):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    remove_abandoned(tmp_path)
    assert [path.exists() for path in (living, dead, elsewhere, result)] == [True, False, True, True]
    remove_abandoned(tmp_path, elsewhere=True)
    assert [path.exists() for path in (living, dead, elsewhere, result)] == [True, False, False, True]


def test_canonical_json_and_derived_seeds_are_reproducible() -> None:
    assert canonical_json({"b": [1.5, "ä"], "a": None}) == '{"a":null,"b":[1.5,"\\u00e4"]}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))
    assert derived_seed(0, 1, 2) == 1128277693 != derived_seed(0, 12)


def test_missing_file_has_a_stamp(tmp_path: Path) -> None:
    assert file_stamp(tmp_path / "nothing") == "missing"


def test_lock_is_exclusive(tmp_path: Path) -> None:
    first = RunLock(tmp_path / "results")
    first.claim()
    with pytest.raises(NgsgdError, match=f"is being worked on by process {os.getpid()} on "):
        RunLock(tmp_path / "results").claim()


@pytest.mark.parametrize("obstacle", ["results", "results/.lock"])
def test_a_lock_that_cannot_be_made_is_reported(tmp_path: Path, obstacle: str) -> None:
    path = tmp_path / obstacle
    if path.name == "results":
        path.touch()
    else:
        path.mkdir(parents=True)
    lock = RunLock(tmp_path / "results")
    with pytest.raises(NgsgdError, match=f"{path}: the lock of .*results/ cannot be made"):
        lock.claim()


def test_lock_is_refused_if_another_call_held_it_since_it_was_opened(tmp_path: Path) -> None:
    first, early = RunLock(tmp_path), RunLock(tmp_path)
    first.claim()
    during = RunLock(tmp_path)
    assert first._file is not None
    first._file.close()
    for late in (early, during):
        with pytest.raises(NgsgdError, match="until just now"):
            late.claim()
    RunLock(tmp_path).claim()


def test_a_pipe_is_written_through_and_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    write_text(path, "through\n")
    assert os.read(reader, 100) == b"through\n"
    os.close(reader)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert list(tmp_path.iterdir()) == [path]
