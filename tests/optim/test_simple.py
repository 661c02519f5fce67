from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ngsgd import SimpleNaturalGradient


@pytest.mark.parametrize("name", ["n64_d40_a1", "n128_d61_a4", "n32_d80_a4"])
def test_reproduces_what_was_recorded_from_kaldi(kaldi: Path, name: str) -> None:
    golden = np.load(kaldi / "golden" / "simple" / f"{name}.npz")
    for X, X_hat in zip(golden["X"], golden["X_hat"], strict=True):
        ours, scale = SimpleNaturalGradient(float(golden["alpha"])).precondition(torch.from_numpy(X))
        assert np.abs(ours.numpy() - X_hat).max() <= 1e-4 * np.abs(X_hat).max()
        assert float(scale) == 1.0


@pytest.mark.parametrize(("N", "D"), [(12, 5), (5, 12)])
@pytest.mark.parametrize("magnitude", [1.0, 1e-12, 1e12])
def test_follows_the_definition(N: int, D: int, magnitude: float) -> None:
    X = magnitude * np.random.default_rng(0).normal(size=(N, D))
    alpha = 2.0
    lambda_ = alpha / (N * D) * np.trace(X.T @ X)
    expected = np.array([np.linalg.solve((X.T @ X - np.outer(x, x)) / (N - 1) + lambda_ * np.eye(D), x) for x in X])
    expected *= np.linalg.norm(X) / np.linalg.norm(expected)
    ours, _ = SimpleNaturalGradient(alpha).precondition(torch.from_numpy(X))
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9, atol=1e-9 * magnitude)


def test_little_smoothing_costs_no_precision() -> None:
    X = torch.randn(32, 80, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact, _ = SimpleNaturalGradient(1e-6).precondition(X)
    ours, _ = SimpleNaturalGradient(1e-6).precondition(X.float())
    assert float((ours - exact).norm() / exact.norm()) < 1e-2


@pytest.mark.parametrize("X", [torch.zeros(4, 3), torch.ones(1, 3)])
def test_leaves_alone_what_has_no_scatter(X: torch.Tensor) -> None:
    x_hat, scale = SimpleNaturalGradient().precondition(X)
    assert torch.equal(x_hat, X)
    assert float(scale) == 1.0


def test_refuses_what_is_not_finite() -> None:
    with pytest.raises(FloatingPointError):
        SimpleNaturalGradient().precondition(torch.full((4, 5), torch.inf))
