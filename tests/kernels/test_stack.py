"""The way through layers and back beside PyTorch's operators."""

from __future__ import annotations

import pytest
import torch

from ngsgd.kernels.rows import append_ones
from ngsgd.kernels.stack import AffineLayer, Norm, backwards, forwards

from .helpers import compiled, random


@compiled
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("above", [None, Norm(2, normalized=False)])
@pytest.mark.parametrize("wanted", [False, True])
def test_layers_are_passed_through(normalized: bool, above: Norm | None, wanted: bool) -> None:
    """Two of them, the upper one on three outputs of the lower one side by side; beside PyTorch's operators."""
    x, lower, upper = random(4, 6, 7), random(15, 16, seed=1), random(10, 16, seed=2)
    given = [
        AffineLayer(lower[:, :7], lower[:, 7], Norm(5, normalized=normalized)),
        AffineLayer(upper[:, :9], upper[:, 9], above),
    ]
    leaf = x.clone().requires_grad_()
    values, inputs, zs = leaf, [], []
    for weight, bias, norm in given:
        inputs.append(append_ones(values.detach().reshape(-1, weight.shape[1])))
        z = torch.nn.functional.linear(values, weight, bias)
        z.retain_grad()
        zs.append(z)
        values = z
        if norm is not None:
            values = z.view(*z.shape[:-1], norm.k, -1).norm(dim=-2)
            if norm.normalized:
                values = values / values.square().mean(dim=-1, keepdim=True).sqrt()
        if norm is given[0].norm:
            values = values.reshape(4, 2, 9)
    passed = forwards(x, given)
    assert passed is not None
    torch.testing.assert_close(passed.y, values.detach())
    dy = random(*values.shape, seed=3)
    values.backward(dy)
    dx = torch.empty_like(x) if wanted else None
    # What is kept for the way back may be a copy by then, as may the weights.
    weights, norms = [layer.weight.clone() for layer in given], [layer.norm for layer in given]
    room, y = torch.cat((torch.zeros(5), passed.room))[5:], passed.y.clone() if above else None
    passed.room.fill_(torch.nan)
    for (rows, dz), expected, z in zip(backwards(room, y, weights, norms, 168, dy, dx), inputs, zs, strict=True):
        torch.testing.assert_close(rows, expected)
        torch.testing.assert_close(dz, z.grad.view(dz.shape), rtol=1e-4, atol=1e-5)
    if dx is not None:
        torch.testing.assert_close(dx, leaf.grad, rtol=1e-4, atol=1e-5)


@compiled
def test_layers_are_passed_through_only_where_all_fits() -> None:
    room, upper = random(15, 16), random(5, 16)
    layer = AffineLayer(room[:, :7], room[:, 7], None)
    assert forwards(random(3, 7), [layer]) is not None
    assert forwards(random(7), [layer]).y.shape == (15,)
    for x in (random(3, 6), random(0, 7), random(3, 7).double(), random(7, 3).T):
        assert forwards(x, [layer]) is None
    assert forwards(random(3, 7), [layer._replace(bias=layer.bias.clone())]) is None
    # 5 x 3 outputs are no inputs of 4, those of four places none of 9 for each, nor those of seven places of 6.
    lower = layer._replace(norm=Norm(5, normalized=True))
    for D, x in ((4, random(5, 7)), (9, random(3, 4, 7)), (6, random(2, 7, 7))):
        assert forwards(x, [lower, AffineLayer(upper[:, :D], upper[:, D], None)]) is None
    assert forwards(random(3, 2, 7), [lower, AffineLayer(upper[:, :6], upper[:, 6], None)]).y.shape == (3, 1, 5)
