"""What several tests share: the recorded digits, a small corpus made of them, and Kaldi's recorded numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ngsgd.data.digits import default_file

ROOT = Path(__file__).resolve().parent.parent
KALDI = ROOT.parent / "shared" / "kaldi"


@pytest.fixture(scope="session")
def kaldi() -> Path:
    """Numbers recorded from Kaldi."""
    if not KALDI.is_dir():
        pytest.skip("needs ../shared/kaldi, numbers recorded from Kaldi")
    return KALDI


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 recordings of each digit, in a file of the form of the whole corpus."""
    with np.load(default_file()) as arrays:
        X, y, lengths = arrays["X"], arrays["y"], arrays["lengths"]
    ends = np.cumsum(lengths)
    keep = np.sort(np.concatenate([np.flatnonzero(y == word)[:30] for word in range(10)]))
    path = tmp_path_factory.mktemp("digits") / "few.npz"
    parts = [X[ends[i] - lengths[i] : ends[i]] for i in keep]
    np.savez(path, X=np.concatenate(parts), y=y[keep], lengths=lengths[keep])
    return path
