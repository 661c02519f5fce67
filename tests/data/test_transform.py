from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ngsgd.data.transform import MAX_SINGULAR_VALUE, LdaStatistics, read_transform, write_transform
from ngsgd.errors import DataError


def statistics(rng: np.random.Generator, scale: float = 1.0) -> tuple[LdaStatistics, np.ndarray, np.ndarray]:
    labels = rng.integers(5, size=4000)
    centres = rng.normal(size=(5, 6)) * 2
    x = scale * (centres[labels] + rng.normal(size=(4000, 6)) @ rng.normal(size=(6, 6)))
    lda = LdaStatistics(6, 5)
    for part in np.array_split(np.arange(4000), 7):
        lda.add(x[part], labels[part])
    return lda, x, labels


def test_transform_follows_its_definition() -> None:
    lda, x, labels = statistics(np.random.default_rng(0), scale=3.0)
    factor = 0.01
    weight, bias = lda.transform(factor)
    y = x @ weight.T + bias
    np.testing.assert_allclose(y.mean(axis=0), 0.0, atol=1e-9)
    within = sum(np.cov(y[labels == k].T, bias=True) * (labels == k).mean() for k in range(5))
    total = np.cov(y.T, bias=True)
    between = total - within
    # Before rows are scaled, within is I and between is diag(d); scaling keeps their ratio d.
    d = np.diag(between) / np.diag(within)
    assert (np.diff(d) < 1e-9).all()
    np.testing.assert_allclose(np.diag(within), (factor + d) / (1 + d), rtol=1e-6)
    np.testing.assert_allclose(within - np.diag(np.diag(within)), 0.0, atol=1e-8)


def test_singular_values_are_limited() -> None:
    lda, _, _ = statistics(np.random.default_rng(0), scale=1e-3)
    assert np.linalg.svd(lda.transform(1e-4)[0])[1].max() == pytest.approx(MAX_SINGULAR_VALUE)


def test_features_without_variance_are_refused() -> None:
    lda = LdaStatistics(3, 2)
    lda.add(np.ones((10, 3)), np.arange(10) % 2)
    with pytest.raises(DataError, match="no inverse"):
        lda.transform(1e-4)
    with pytest.raises(DataError, match="no frame counts"):
        LdaStatistics(3, 2).transform(1e-4)


def test_transform_is_read_as_written(tmp_path: Path) -> None:
    weight, bias = np.arange(6.0).reshape(2, 3), np.array([7.0, 8.0])
    write_transform(tmp_path / "t.npy", weight, bias)
    loaded = read_transform(tmp_path / "t.npy")
    np.testing.assert_array_equal(loaded[0], weight)
    np.testing.assert_array_equal(loaded[1], bias)
    np.save(tmp_path / "t.npy", np.array([np.nan]))
    with pytest.raises(DataError, match="not a feature transform"):
        read_transform(tmp_path / "t.npy")
