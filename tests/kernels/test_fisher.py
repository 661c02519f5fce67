"""The renewal of an estimate beside PyTorch's operators."""

from __future__ import annotations

import pytest
import torch

from ngsgd.kernels.fisher import EPSILON, Given, renewed, shares, solution_of
from ngsgd.kernels.rows import append_ones
from ngsgd.optim.online import Renewal, update

from .helpers import WIDTHS, an_estimate, compiled, random


@compiled
@pytest.mark.parametrize("N", [5, 90])
@pytest.mark.parametrize("R", WIDTHS)
@pytest.mark.parametrize("size", [1e-2, 1e2])
def test_a_renewal(operators, R: int, size: float, N: int) -> None:
    D = R + 3
    estimate, X = an_estimate(R, D), append_ones(size * random(N, D - 1))
    H, trace = X @ estimate.W_t.T, X.square().sum()
    renewal = Renewal(estimate, X, H, trace, 4.0, 0.3)
    made = renewed(X, H, estimate.W_t, trace, renewal.given())
    assert made is not None
    (theirs,) = operators(update, [renewal])
    if not made.doubtful:
        signs = (made.W_1 * theirs.W_t).sum(dim=1, keepdim=True).sign()  # an eigenvector has either
        torch.testing.assert_close(made.W_1, signs * theirs.W_t, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(made.shrunk, theirs.shrunk, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(made.d_1, theirs.d_t, rtol=1e-3, atol=1e-3 * float(theirs.d_t[0]))
    assert made.rho_1 == pytest.approx(theirs.rho_t, rel=1e-3)
    # tr(F_{t+1}) is that of T_t, where no floor holds.
    expected = 0.3 / N * float(trace) + 0.7 * (D * 0.05 + float(estimate.d_t.sum()))
    if min(made.rho_1, float(made.d_1.min())) > 1e-3 * (made.rho_1 + float(made.d_1[0])):
        assert float(made.d_1.sum()) + D * made.rho_1 == pytest.approx(expected, rel=1e-4)


@compiled
def test_a_renewal_of_what_is_not_finite(operators) -> None:
    estimate = an_estimate(2, 6)
    for X in (torch.full((4, 6), torch.nan), torch.full((4, 6), 1e25)):
        renewal = Renewal(estimate, X, X @ estimate.W_t.T, X.square().sum(), 4.0, 0.3)
        for function in (update, lambda r: operators(update, r)):
            with pytest.raises(FloatingPointError, match="not finite, or overflow"):
                function([renewal])


@compiled
def test_an_estimate_is_doubted_where_rounding_may_have_spoilt_it() -> None:
    """Where eigenvalues are far apart, and where one is below the floor, 0.01^2; not else. Compiled: after a look."""
    given, U = Given(torch.full((3,), 1.0, dtype=torch.float64), 0.02, 4.0, 0.5, 10, 9), torch.eye(3).double()
    for values, doubtful in (((1e-3, 0.5, 1.0), False), ((1.1e-4, 0.5, 109.0), False), ((1.1e-4, 0.5, 111.0), True),
                             ((0.9e-4, 0.5, 1.0), True)):  # fmt: skip
        assert solution_of(torch.tensor(values).double(), U, 1.0, 9.0, given, torch.empty(0)).doubtful == doubtful
    # Compiled: of rows along the estimate's own directions the eigenvalues are their squared lengths' squares.
    d_t = torch.full((3,), EPSILON, dtype=torch.float64)
    W = torch.eye(3, 9) * float(shares(d_t, EPSILON, 4.0, 9)[0]) ** 0.5
    spoilt = W.clone()
    spoilt[2, 0] = 0.1 * W[0, 0]
    for longest, W_t, doubtful in ((31.0, spoilt, False), (32.0, spoilt, True), (32.0, W, False)):
        X = torch.eye(3, 9) * torch.tensor([[longest], [2.0], [1.0]])
        made = renewed(X, X @ W_t.T, W_t, X.square().sum(), Given(d_t, EPSILON, 4.0, 0.5, 3, 9))
        assert made is not None
        assert made.doubtful == doubtful
    # Of rows of zeros they are (0.5 (d + rho))^2, none of which is below the floor.
    d_t = torch.tensor([1.0, 1e-9, 1e-9], dtype=torch.float64)
    made = renewed(torch.zeros(3, 9), torch.zeros(3, 3), W, torch.tensor(0.0), Given(d_t, 0.02, 4.0, 0.5, 3, 9))
    assert made is not None
    assert not made.doubtful
