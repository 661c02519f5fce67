"""The online natural gradient, compared with Kaldi's records and with its definition on full matrices."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ngsgd import OnlineNaturalGradient
from ngsgd.ops import FisherState, FisherUpdate, PreconditionerInput, update_fisher
from ngsgd.ops.records import CONDITION_THRESHOLD
from ngsgd.optim.online import orthonormalize

X_HAT_TOLERANCE = {"small_batch": 5e-2, "alpha_1_hist_500": 5e-4}
GOLDEN = (
    "alpha_1_hist_500", "big_batch", "dim_one", "every_minibatch", "huge_scale", "in_r20", "out_r80", "rank_above_dim",
    "small_batch", "tiny_scale", "zero_minibatch",
)  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_reproduces_what_was_recorded_from_kaldi(kaldi: Path, name: str) -> None:
    golden = np.load(kaldi / "golden" / "online" / f"{name}.npz")
    preconditioner = OnlineNaturalGradient(
        int(golden["rank"]), float(golden["alpha"]), float(golden["num_samples_history"]), int(golden["update_period"])
    )
    for t, (X, X_hat, scale) in enumerate(zip(golden["X"], golden["X_hat"], golden["scale"], strict=True)):
        ours, our_scale = preconditioner.precondition(torch.from_numpy(X))
        tolerance = X_HAT_TOLERANCE.get(name, 2e-4)
        assert np.abs(ours.numpy() - X_hat).max() <= tolerance * np.abs(X_hat).max(), t
        scale_tolerance = max(1e-4, tolerance if name in X_HAT_TOLERANCE else 0.0)
        assert float(our_scale) == pytest.approx(float(scale), rel=scale_tolerance), t


def smoothed_inverse(F: npt.NDArray[np.float64], alpha: float) -> npt.NDArray[np.float64]:
    """The inverse of G = F + (alpha/D) tr(F) I."""
    D = len(F)
    return np.linalg.inv(F + alpha / D * np.trace(F) * np.eye(D))


class Dense:
    """The method by its definition (arXiv:1410.7455), with R_t, D_t, rho_t and full matrices.

    R_{t+1} is the result of one step of the power method on T_t = (eta/N) X^T X + (1-eta) F_t, starting from R_t.
    """

    def __init__(self, estimate: FisherState) -> None:
        W = estimate.W_t.double().numpy()
        self.R = W / np.linalg.norm(W, axis=1, keepdims=True)
        self.d, self.rho = estimate.d_t.numpy().copy(), estimate.rho_t

    def fisher(self) -> npt.NDArray[np.float64]:
        return (self.R.T * self.d) @ self.R + self.rho * np.eye(self.R.shape[1])

    def update(self, X: npt.NDArray[np.float64], eta: float) -> None:
        rank, D = self.R.shape
        T = eta / len(X) * X.T @ X + (1 - eta) * self.fisher()
        Y = self.R @ T
        c, U = np.linalg.eigh(Y @ Y.T)
        c, U = c[::-1], U[:, ::-1]
        c = np.maximum(c, (self.rho * (1 - eta)) ** 2)
        self.R = (U / np.sqrt(c)).T @ Y
        rho = (np.trace(T) - np.sqrt(c).sum()) / (D - rank)
        floor = max(1e-10, 5e-4 * np.sqrt(c).max())
        self.d, self.rho = np.maximum(np.sqrt(c) - rho, floor), max(rho, floor)


@pytest.mark.parametrize(("N", "D", "rank", "alpha"), [(40, 12, 3, 4.0), (10, 30, 5, 1.0), (64, 7, 6, 0.5)])
def test_follows_the_definition(N: int, D: int, rank: int, alpha: float) -> None:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(D, D)) * np.logspace(0, -1.5, D)
    batches = [torch.from_numpy(rng.normal(size=(N, D)) @ mix) for _ in range(6)]
    eta = min(0.9, 1.0 - math.exp(-N / 200.0))
    preconditioner = OnlineNaturalGradient(rank, alpha, 200.0)
    preconditioner.precondition(batches[0])
    assert preconditioner._state is not None
    dense = Dense(preconditioner._state)
    for X in batches[1:]:
        x_hat, scale = preconditioner.precondition(X)
        expected = X.numpy() @ smoothed_inverse(dense.fisher(), alpha)
        # X_hat is the product with the inverse but for a factor that gamma takes up again.
        gamma = np.linalg.norm(X.numpy()) / np.linalg.norm(expected)
        np.testing.assert_allclose((x_hat * scale).numpy(), gamma * expected, rtol=1e-7, atol=1e-9)
        dense.update(X.numpy(), eta)


def test_updates_ten_times_and_then_on_each_fourth_minibatch() -> None:
    preconditioner = OnlineNaturalGradient(3, update_period=4)
    updated = []
    for X in torch.randn(24, 16, 8, generator=torch.Generator().manual_seed(1)):
        before = preconditioner._state
        preconditioner.precondition(X)
        updated.append(preconditioner._state is not before)
    assert [t for t, u in enumerate(updated) if u] == [*range(10), 13, 17, 21]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_leaves_its_input_and_dtype_alone(dtype: torch.dtype) -> None:
    X = torch.randn(16, 8, dtype=dtype, generator=torch.Generator().manual_seed(1))
    copy = X.clone()
    x_hat, scale = OnlineNaturalGradient(3).precondition(X)
    assert torch.equal(X, copy)
    assert x_hat.dtype == dtype
    assert x_hat.data_ptr() != X.data_ptr()
    assert float(scale * x_hat.norm()) == pytest.approx(float(X.norm()), rel=1e-6)


@pytest.mark.parametrize(
    ("X", "error"),
    [(torch.full((4, 5), torch.nan), FloatingPointError), (torch.full((4, 5), 1e30), FloatingPointError),
     (torch.zeros(5), ValueError)],
)  # fmt: skip
def test_refuses_what_it_cannot_precondition(X: torch.Tensor, error: type[Exception]) -> None:
    with pytest.raises(error):
        OnlineNaturalGradient(2).precondition(X)


def test_refuses_rows_of_another_width() -> None:
    preconditioner = OnlineNaturalGradient(2)
    preconditioner.precondition(torch.randn(4, 5))
    with pytest.raises(ValueError, match="dimension 6"):
        preconditioner.precondition(torch.randn(4, 6))


@pytest.mark.parametrize("noise", [0.05, 1.0])
def test_rows_that_lost_their_orthonormality_get_it_back(noise: float) -> None:
    generator = torch.Generator().manual_seed(0)
    R = torch.linalg.qr(torch.randn(20, 6, dtype=torch.float64, generator=generator)).Q.T
    e = torch.linspace(0.9, 0.1, 6, dtype=torch.float64)
    spoiled = R + noise * torch.randn(6, 20, dtype=torch.float64, generator=generator)
    if noise == 1.0:
        spoiled[5] = spoiled[0]  # past repair by a Cholesky factor
    W = orthonormalize(e.sqrt()[:, None] * spoiled, e)
    torch.testing.assert_close(W @ W.T, torch.diag(e))


def test_updates_of_little_rank_keep_the_rows_orthonormal() -> None:
    """A minibatch of fewer independent rows than the rank leaves eigenvalues at the floor.

    What is lost from one update to the next is a matter of rounding: of 600 seeds the median is 7e-4, the worst 1.2e-2.
    """
    losses = []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        preconditioner = OnlineNaturalGradient(8)
        for _ in range(12):
            row = 1e3 * torch.randn(1, 20, generator=generator)
            preconditioner.precondition(row * torch.randn(6, 1, generator=generator))
        estimate = preconditioner._state
        assert estimate is not None
        (updated,) = update_fisher([PreconditionerInput(row, estimate, FisherUpdate(4.0, 0.5))])
        preconditioner.record(updated)
        after = preconditioner._state
        assert after is not None
        R = after.W_t.double() / torch.linalg.vector_norm(after.W_t.double(), dim=1, keepdim=True)
        losses.append(float((R @ R.T - torch.eye(8)).abs().max()))
        assert float(after.d_t.max() / after.rho_t) < CONDITION_THRESHOLD
    assert sorted(losses)[38] < 1e-2
    assert sorted(losses)[20] < 1e-3


def test_columns_in_another_order_are_an_error() -> None:
    preconditioner = OnlineNaturalGradient(2)
    X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    preconditioner.prepare(X, (0, 2, 1, 3))
    preconditioner.prepare(X, (0, 2, 1, 3))
    with pytest.raises(RuntimeError, match="reordered since the optimiser's first step"):
        preconditioner.prepare(X)
