"""Operations on the rows of a matrix."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from ngsgd.ops import reference

from .helpers import WIDTHS, random


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("normalized", [False, True])
def test_two_norm_and_its_derivative(backend: ModuleType, normalized: bool, width: int) -> None:
    groups = random(2, 3, 5, width)
    groups[0, 1] = 0.0  # below the floor
    groups[1, 2] = 1e-25  # the squares underflow in float32
    groups[1, 1] = 1e-12  # below the floor, too
    y, scale = backend.two_norm(groups, normalized=normalized)
    exact_y, exact_scale = reference.two_norm(groups.double(), normalized=normalized)
    torch.testing.assert_close(y.double(), exact_y, rtol=1e-5, atol=1e-6)
    if normalized:
        assert (scale == 0.0).tolist() == [[False, True, False], [False, True, True]]
        torch.testing.assert_close(scale.double(), exact_scale, rtol=1e-5, atol=0.0)
        torch.testing.assert_close(y, backend.normalize(backend.two_norm(groups, normalized=False)[0])[0])

    dy = random(2, 3, width, seed=1)
    expected = reference.two_norm_backward_(
        groups.double(), y.double(), None if scale is None else scale.double(), dy.double()
    )
    version = groups._version
    derivative = backend.two_norm_backward_(groups, y, scale, dy)
    assert derivative is groups
    assert groups._version > version, "autograd must notice that the groups were overwritten"
    largest = 1.0 if scale is None else float(scale.max())
    torch.testing.assert_close(derivative.double(), expected, rtol=1e-5, atol=1e-5 * largest)
    assert not derivative[0, 1].any()


@pytest.mark.parametrize("width", WIDTHS)
def test_normalize_and_its_derivative(backend: ModuleType, width: int) -> None:
    x, dy = random(2, 3, width), random(2, 3, width, seed=1)
    x[0, 1] = 1e-11  # below the floor
    x[1, 0] = 0.0
    y, scale = backend.normalize(x)
    exact_y, exact_scale = reference.normalize(x.double())
    torch.testing.assert_close(y.double(), exact_y, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scale.double(), exact_scale, rtol=1e-5, atol=0.0)
    assert (scale == 0.0).tolist() == [[False, True, False], [True, False, False]]
    dx = backend.normalize_backward(y, scale, dy)
    # A row cannot change along its own direction; the rest there is rounding.
    expected = reference.normalize_backward(y.double(), scale.double(), dy.double())
    torch.testing.assert_close(dx.double(), expected, rtol=1e-5, atol=1e-5 * float(scale.max()))


def test_derivatives_are_those_of_autograd() -> None:
    """The reference backend in float64, against torch's own derivatives."""
    groups = random(4, 3, 5).double().requires_grad_()
    norms = groups.norm(dim=-2)
    normalized = norms / norms.square().mean(dim=-1, keepdim=True).sqrt()
    dy = random(4, 5, seed=1).double()
    normalized.backward(dy)
    y, scale = reference.two_norm(groups.detach(), normalized=True)
    torch.testing.assert_close(y, normalized.detach())
    torch.testing.assert_close(reference.two_norm_backward_(groups.detach().clone(), y, scale, dy), groups.grad)


@pytest.mark.parametrize("width", WIDTHS)
def test_append_ones(backend: ModuleType, width: int) -> None:
    x = random(9, width)
    assert torch.equal(backend.append_ones(x), torch.cat((x, torch.ones(9, 1)), dim=1))


def test_nan_propagates(backend: ModuleType) -> None:
    x = random(3, 4, 16)
    x[1, 2, 3] = torch.nan
    y, _ = backend.two_norm(x, normalized=False)
    z, scale = backend.normalize(x[:, 0].contiguous() + y)
    normalized, normalized_scale = backend.two_norm(x, normalized=True)
    for result in (y, z, normalized):
        assert result.isnan().any(dim=1).tolist() == [False, True, False]
    ones = torch.ones_like(y)
    assert backend.two_norm_backward_(x.clone(), normalized, normalized_scale, ones)[1].isnan().all()
    assert backend.two_norm_backward_(x, y, None, ones)[1].isnan().any()
    assert backend.normalize_backward(z, scale, ones)[1].isnan().all()
