"""The update of Fisher estimates."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from ngsgd.ops import FisherState, FisherUpdate, PreconditionerInput, reference
from ngsgd.ops.records import EPSILON, e_t

from .helpers import WIDTHS, in_double, needs_cpu_backend, random, random_fisher


@pytest.mark.parametrize("N", [5, 90])
@pytest.mark.parametrize("R", WIDTHS)
@pytest.mark.parametrize("size", [1e-2, 1e2])
def test_update_agrees_with_double_precision(backend: ModuleType, R: int, size: float, N: int) -> None:
    D = R + 3
    fisher, X = random_fisher(R, D), reference.append_ones(size * random(N, D - 1))
    side = PreconditionerInput(X, fisher, FisherUpdate(4.0, 0.3))
    (updated,) = backend.update_fisher([side])
    (exact,) = reference.update_fisher([side._replace(X=X.double(), fisher=in_double(fisher))])
    state, expected = updated.state, exact.state
    if not updated.needs_reorthogonalizing:
        W_t = state.W_t.double()
        signs = (W_t * expected.W_t).sum(dim=1, keepdim=True).sign()  # an eigenvector has either sign
        torch.testing.assert_close(W_t, signs * expected.W_t, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(state.two_minus_e.double(), expected.two_minus_e, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(state.d_t, expected.d_t, rtol=1e-3, atol=1e-3 * float(expected.d_t[0]))
    assert state.rho_t == pytest.approx(expected.rho_t, rel=1e-3)
    # tr(F_{t+1}) = tr(T_t), unless a floor applies.
    trace = float(X.double().square().sum())
    tr_T = 0.3 / N * trace + 0.7 * (D * 0.05 + float(fisher.d_t.sum()))
    if min(state.rho_t, float(state.d_t.min())) > 1e-3 * (state.rho_t + float(state.d_t[0])):
        assert float(state.d_t.sum()) + D * state.rho_t == pytest.approx(tr_T, rel=1e-4)


def test_values_that_are_not_finite_are_an_error(backend: ModuleType) -> None:
    for X in (torch.full((4, 6), torch.nan), torch.full((4, 6), 1e25)):
        side = PreconditionerInput(X, random_fisher(2, 6), FisherUpdate(4.0, 0.3))
        with pytest.raises(FloatingPointError, match="not finite, or overflow"):
            backend.update_fisher([side])


def test_several_estimates_are_updated_at_once(backend: ModuleType) -> None:
    sides = [
        PreconditionerInput(random(20, D, seed=D), random_fisher(3, D), FisherUpdate(4.0, 0.3)) for D in (7, 12, 9)
    ]
    together = backend.update_fisher(sides)
    for side, updated in zip(sides, together, strict=True):
        (alone,) = backend.update_fisher([side])
        torch.testing.assert_close(updated.state.W_t, alone.state.W_t)
        assert updated.state.rho_t == pytest.approx(alone.state.rho_t)


def eigenvalue_case(*eigenvalues: float) -> PreconditionerInput:
    """A minibatch along the estimate's own directions, for which Z_t is diagonal up to the estimate's tiny d_t."""
    d_t = torch.full((3,), EPSILON, dtype=torch.float64)
    W_t = torch.eye(3, 9) * float(e_t(d_t, EPSILON, 4.0, 9)[0]) ** 0.5
    fisher = FisherState(W_t, torch.ones(3), d_t, EPSILON)
    X = torch.eye(3, 9) * torch.tensor(eigenvalues)[:, None]
    return PreconditionerInput(X, fisher, FisherUpdate(4.0, 0.5))


def test_reorthogonalizing_where_eigenvalues_are_far_apart() -> None:
    """The reference backend asks for it from the condition of Z_t alone."""
    for largest, expected in ((31.0, False), (32.0, True)):
        (updated,) = reference.update_fisher([eigenvalue_case(largest, 2.0, 1.0)])
        assert updated.needs_reorthogonalizing == expected
    # Below the floor (rho_t (1 - eta))^2, where rounding has made an eigenvalue too small.
    side = eigenvalue_case(3.0, 2.0, 1.0)
    K_t, L_t = torch.diag(torch.tensor([9.0, 4.0, -1.0])), torch.zeros(3, 3)
    solution = reference.solve_update(side, K_t, L_t, torch.tensor(14.0))
    assert solution.needs_reorthogonalizing


@needs_cpu_backend
def test_cpu_backend_looks_at_the_rows_before_it_asks_for_reorthogonalizing() -> None:
    from ngsgd.ops import cpu

    (updated,) = cpu.update_fisher([eigenvalue_case(32.0, 2.0, 1.0)])
    assert not updated.needs_reorthogonalizing
    side = eigenvalue_case(32.0, 2.0, 1.0)
    side.fisher.W_t[2, 0] = 0.1 * side.fisher.W_t[0, 0]
    (updated,) = cpu.update_fisher([side])
    assert updated.needs_reorthogonalizing
