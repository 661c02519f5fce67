"""Functions of rows beside PyTorch's operators, which do the same."""

from __future__ import annotations

import pytest
import torch

from ngsgd.kernels.rows import append_ones, normalize, normalize_derivative, two_norm, two_norm_derivative_
from ngsgd.kernels.step import Preconditioned, Trained, descend

from .helpers import WIDTHS, compiled, random


@compiled
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("normalized", [False, True])
def test_norms_of_groups(operators, normalized: bool, width: int) -> None:
    groups = random(2, 3, 5, width)
    groups[0, 1] = 0.0  # below the floor
    groups[1, 2] = 1e-25  # squares that underflow
    groups[1, 1] = 1e-12  # below the floor, too
    (y, scale), dy = two_norm(groups, normalized=normalized), random(2, 3, width, seed=1)
    y_, scale_ = operators(lambda g: two_norm(g, normalized=normalized), groups)
    torch.testing.assert_close(y, y_)
    torch.testing.assert_close(scale, scale_)
    if normalized:
        assert (scale == 0.0).tolist() == [[False, True, False], [False, True, True]]
        torch.testing.assert_close(y, normalize(two_norm(groups, normalized=False)[0])[0])
    size = 1e-5 * (1.0 if scale is None else float(scale.max()))  # rounding: as in the test below
    expected = operators(two_norm_derivative_, groups.clone(), y, scale, dy)
    derivative = two_norm_derivative_(groups, y, scale, dy)
    assert derivative is groups
    torch.testing.assert_close(derivative, expected, rtol=1e-5, atol=size)
    assert not derivative[0, 1].any()


@compiled
@pytest.mark.parametrize("width", WIDTHS)
def test_rows_of_one_size(operators, width: int) -> None:
    x, dy = random(2, 3, width), random(2, 3, width, seed=1)
    x[0, 1] = 1e-11  # below the floor
    x[1, 0] = 0.0
    (y, scale), (y_, scale_) = normalize(x), operators(normalize, x)
    torch.testing.assert_close(y, y_)
    torch.testing.assert_close(scale, scale_)
    assert (scale == 0.0).tolist() == [[False, True, False], [True, False, False]]
    dx = normalize_derivative(y, scale, dy)
    # Along its own direction a row cannot be changed; what is left there is rounding.
    torch.testing.assert_close(
        dx, operators(normalize_derivative, y, scale, dy), rtol=1e-5, atol=1e-5 * float(scale.max())
    )


@compiled
@pytest.mark.parametrize("width", WIDTHS)
def test_rows_with_a_one(operators, width: int) -> None:
    x = random(9, width)
    rows = append_ones(x)
    assert torch.equal(rows, torch.cat((x, torch.ones(9, 1)), dim=1))
    assert torch.equal(rows, operators(append_ones, x))


@compiled
def test_what_is_not_a_number_stays_so() -> None:
    x = random(3, 4, 16)
    x[1, 2, 3] = torch.nan
    y, _ = two_norm(x, normalized=False)
    z, scale = normalize(x[:, 0].contiguous() + y)
    both, their_scale = two_norm(x, normalized=True)
    for made in (y, z, both):
        assert made.isnan().any(dim=1).tolist() == [False, True, False]
    assert two_norm_derivative_(x.clone(), both, their_scale, torch.ones_like(y))[1].isnan().all()
    assert two_norm_derivative_(x, y, None, torch.ones_like(y))[1].isnan().any()
    assert normalize_derivative(z, scale, torch.ones_like(z))[1].isnan().all()
    rows = Preconditioned(z, random(2, 16), torch.ones(2))
    descend([Trained(torch.zeros(16, 16), None, rows, Preconditioned(z))], 0.1, 1.0)
    assert rows.lengths.isnan().tolist() == [False, True, False]
