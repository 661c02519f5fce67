"""The preconditioned step of layers."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from torch import Tensor

from ngsgd import ops
from ngsgd.ops import AffineLayer, FisherUpdate, PreconditionerInput, cpu, reference
from ngsgd.ops.layout import fused_matrix

from .helpers import WIDTHS, in_double, needs_cpu_backend, random, random_fisher


def test_weight_and_bias_are_fused_where_the_bias_is_a_column() -> None:
    one, other = random(5, 16), random(5, 16, seed=1)
    fused = fused_matrix(one[:, :7], one[:, 7])
    assert fused is not None
    assert torch.equal(fused, one[:, :8])
    fused.zero_()
    assert not one[:, :8].any()
    for bias in (other[:, 7], one[:, 8], one[:, 7].clone()):
        assert fused_matrix(one[:, :7], bias) is None


def x_hat(side: PreconditionerInput) -> Tensor:
    """X^ in float64, from its definition."""
    X = side.X.double()
    if side.fisher is None:
        return X
    W_t = side.fisher.W_t.double()
    return X - X @ W_t.T @ W_t


def expected_step(x: PreconditionerInput, y: PreconditionerInput, lr: float, max_change: float) -> tuple[Tensor, bool]:
    """s Y^^T X^ from the formulas of the optimiser's docstring, and whether max-change limits it."""
    s = lr
    for side in (x, y):
        if side.fisher is not None:
            s *= math.sqrt(float(side.X.double().square().sum() / x_hat(side).square().sum()))
    change = s * float(x_hat(x).norm(dim=1) @ x_hat(y).norm(dim=1))
    limit = max_change * len(x.X)
    limited = max_change > 0.0 and change > limit
    return (limit / change if limited else 1.0) * s * x_hat(y).T @ x_hat(x), limited


@pytest.mark.parametrize("max_change", [0.0, 1e-4, 1e4])
@pytest.mark.parametrize("N", [3, 60])
@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("bias", ["fused", "separate", None])
def test_step_agrees_with_its_formula(
    backend: ModuleType, max_change: float, N: int, low_rank: bool, bias: str | None
) -> None:
    """With few rows Y^ is formed, with many it is not. Two layers share their parameters."""
    D_in, D_out = 4, 17
    matrix = random(D_out, 16, seed=6)
    b = {"fused": matrix[:, D_in], "separate": matrix[:, D_in].clone(), None: None}[bias]
    layer = AffineLayer(matrix[:, :D_in], b)
    width = D_in + (b is not None)
    before = torch.cat((layer.weight, b[:, None]), dim=1).clone() if b is not None else layer.weight.clone()
    inputs, derivatives, expected, limited = [], [], before.double(), []
    for seed in (0, 5):
        rows = reference.append_ones(random(N, D_in, seed=seed)) if b is not None else random(N, D_in, seed=seed)
        x = PreconditionerInput(rows, random_fisher(3, width) if low_rank else None)
        y = PreconditionerInput(random(N, D_out, seed=seed + 1), random_fisher(3, D_out) if low_rank else None)
        step, is_limited = expected_step(x, y, 0.1, max_change)
        expected = expected - step
        inputs.append(x)
        derivatives.append(y)
        limited.append(is_limited)
    results = backend.preconditioned_step([layer, layer], inputs, derivatives, 0.1, max_change)
    assert [bool(result.limited) for result in results] == limited == [max_change == 1e-4] * 2
    after = torch.cat((layer.weight, b[:, None]), dim=1) if b is not None else layer.weight
    torch.testing.assert_close(after.double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(matrix[:, D_in + 1 :], random(D_out, 16, seed=6)[:, D_in + 1 :])  # the padding of the rows
    # A change that is not a number does not limit the step, and reaches the weights.
    inputs[0].X[0, 0] = torch.nan
    backend.preconditioned_step([layer], inputs[:1], derivatives[:1], 0.1, max_change)
    assert layer.weight[:, 0].isnan().all()


@pytest.mark.parametrize("width", WIDTHS)
def test_max_change_measures_rows_that_are_not_formed(backend: ModuleType, width: int) -> None:
    x = PreconditionerInput(random(40, width, seed=1))
    y = PreconditionerInput(random(40, 90, seed=2), random_fisher(5, 90))
    step, _ = expected_step(x, y, 0.1, 0.01)
    layer = AffineLayer(torch.zeros(90, width), None)
    backend.preconditioned_step([layer], [x], [y], 0.1, 0.01)
    torch.testing.assert_close(layer.weight.double(), -step, rtol=1e-3, atol=1e-6)


def test_due_updates_are_made_from_the_rows_of_the_step(backend: ModuleType) -> None:
    update = FisherUpdate(alpha=4.0, eta=0.3)
    x = PreconditionerInput(random(50, 8), random_fisher(3, 8), update)
    y = PreconditionerInput(random(50, 9, seed=1), random_fisher(3, 9))
    layer = AffineLayer(random(9, 8), None)
    (result,) = backend.preconditioned_step([layer], [x], [y], 0.1, 0.0)
    assert result.y_fisher is None
    exact = x._replace(X=x.X.double(), fisher=in_double(x.fisher))
    (expected,) = reference.update_fisher([exact])
    torch.testing.assert_close(result.x_fisher.state.d_t, expected.state.d_t, rtol=1e-4, atol=1e-6)
    assert result.x_fisher.state.rho_t == pytest.approx(expected.state.rho_t, rel=1e-4)


def test_update_from_values_that_are_not_finite_is_an_error(backend: ModuleType) -> None:
    X = random(5, 8)
    X[2, 3] = torch.inf
    x = PreconditionerInput(X, random_fisher(3, 8), FisherUpdate(alpha=4.0, eta=0.3))
    with pytest.raises(FloatingPointError, match="not finite, or overflow"):
        backend.preconditioned_step(
            [AffineLayer(random(9, 8), None)], [x], [PreconditionerInput(random(5, 9))], 0.1, 0.0
        )


def test_rows_of_zeros_make_no_step(backend: ModuleType) -> None:
    """gamma is 1 where X^ is 0."""
    weight = random(8, 8)
    before = weight.clone()
    y = PreconditionerInput(torch.zeros(5, 8), random_fisher(3, 8))
    (result,) = backend.preconditioned_step(
        [AffineLayer(weight, None)], [PreconditionerInput(random(5, 8))], [y], 0.1, 0.1
    )
    assert not result.limited
    assert torch.equal(weight, before)


def test_autograd_notices_the_step(backend: ModuleType) -> None:
    weight = random(8, 8)
    version = weight._version
    sides = PreconditionerInput(random(5, 8)), PreconditionerInput(random(5, 8, seed=1))
    backend.preconditioned_step([AffineLayer(weight, None)], [sides[0]], [sides[1]], 0.1, 0.0)
    assert weight._version > version


@needs_cpu_backend
def test_each_layer_goes_to_a_backend_that_supports_it() -> None:
    weight = random(8, 8)
    layer = AffineLayer(weight, None)
    x, y = PreconditionerInput(random(5, 8)), PreconditionerInput(random(5, 8, seed=1))
    assert cpu.supports_step(layer, x, y)
    unsupported = [
        (layer._replace(weight=weight.double()), x, y),
        (layer._replace(weight=weight.T), x, y),
        (layer._replace(bias=torch.zeros(8)), x, y),  # the column of ones is missing
        (layer, x._replace(X=random(5, 8).double()), y),
        (layer, x, y._replace(X=random(8, 5).T)),
        (layer, x, y._replace(X=random(4, 8))),
        (layer, x, y._replace(X=random(5, 9))),
        (layer, x._replace(fisher=random_fisher(3, 9)), y),
    ]
    for case in unsupported:
        assert not cpu.supports_step(*case)
    double = AffineLayer(weight.double(), None)
    before = weight.double()
    wide = (x._replace(X=x.X.double()), y._replace(X=y.X.double()))
    results = ops.preconditioned_step([double, layer], [wide[0], x], [wide[1], y], 0.1, 0.0)
    assert [bool(result.limited) for result in results] == [False, False]
    expected = before - 0.1 * wide[1].X.T @ wide[0].X
    torch.testing.assert_close(double.weight, expected)
    torch.testing.assert_close(weight.double(), expected, rtol=1e-5, atol=1e-5)
    assert ops.preconditioned_step([], [], [], 0.1, 0.0) == []
