"""Fixtures for tests in several folders: a small corpus of recorded digits, and numbers recorded from Kaldi."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ngsgd.data.corpora.digits import default_file

ROOT = Path(__file__).resolve().parent.parent
KALDI = ROOT.parent / "shared" / "kaldi"


@pytest.fixture(scope="session")
def kaldi() -> Path:
    """Returns the directory of numbers recorded from Kaldi; skips the test if there is none."""
    if not KALDI.is_dir():
        pytest.skip("needs ../shared/kaldi, numbers recorded from Kaldi")
    return KALDI


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes a file with 30 recordings of each digit, in the format of the whole corpus, and returns its path."""
    with np.load(default_file()) as arrays:
        X, y, lengths = arrays["X"], arrays["y"], arrays["lengths"]
    ends = np.cumsum(lengths)
    keep = np.sort(np.concatenate([np.flatnonzero(y == word)[:30] for word in range(10)]))
    path = tmp_path_factory.mktemp("digits") / "few.npz"
    parts = [X[ends[i] - lengths[i] : ends[i]] for i in keep]
    np.savez(path, X=np.concatenate(parts), y=y[keep], lengths=lengths[keep])
    return path
