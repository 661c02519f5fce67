"""Tests that a full disk gives a clear error and leaves no file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ngsgd.data.corpus import Utterance, write_subset

PROGRAM = """
import sys
from pathlib import Path
from ngsgd.data import egs
from ngsgd.data.corpus import Subset
from ngsgd.cli.entry_point import entry_point
egs.DISK_RESERVE = -(2**40)  # as if the disk had filled up after the check of free space
with entry_point():
    egs.distribute(Subset(sys.argv[1], "train"), egs.Layout(1, 8), (7, 6), 0, 1, Path(sys.argv[2], "part.npy"))
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk_is_an_error_and_leaves_no_file(small_disk: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(800, 40)).astype(np.float32), np.zeros(800, np.int32)
    write_subset(tmp_path, "train", (Utterance(f"u{i}", features, labels) for i in range(10)), 40)
    outcome = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(small_disk)], capture_output=True, text=True
    )
    assert outcome.returncode == 1, outcome
    part = small_disk / "part.npy"
    assert outcome.stderr.splitlines()[-1] == f"error: [Errno 28] No space left on device: '{part}'"
    assert list(small_disk.iterdir()) == []
