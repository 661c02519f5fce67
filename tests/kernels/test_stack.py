"""The way through a network and back beside PyTorch's operators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from ngsgd.kernels.rows import append_ones
from ngsgd.kernels.stack import AffineLayer, Base, Norm, Top, there_and_back

from .helpers import compiled, random

NOTHING = Base(None, None, None)


def layers(D: int, norm: Norm | None, chosen: Tensor | None = None) -> list[AffineLayer]:
    """Two, the upper one, of five classes, on two outputs of the lower one side by side."""
    room, upper = random(15, -(-(D + 1) // 16) * 16), random(5, 32, seed=2)
    D_in = 2 * (15 if norm is None else 15 // norm.k)
    return [
        AffineLayer(room[:, :D], room[:, D], norm),
        AffineLayer(upper[:, :D_in], upper[:, D_in], None, chosen),
    ]


def by_operators(x: Tensor, given: list[AffineLayer], base: Base, top: Top) -> tuple[Tensor, int, list]:
    if base.chosen is not None:
        x = x[:, base.chosen].flatten(2)
    if base.weight is not None:
        x = nn.functional.linear(x, base.weight, base.bias)
    inputs, zs = [], []
    B = len(x)
    for weight, bias, norm, chosen in given:
        if chosen is not None:
            x = x.view(B, -1, x.shape[-1])[:, chosen]
        x = x.reshape(-1, weight.shape[1])
        inputs.append(append_ones(x.detach()))
        x = nn.functional.linear(x, weight, bias).requires_grad_()
        x.retain_grad()
        zs.append(x)
        if norm is not None:
            x = x.view(len(x), norm.k, -1).norm(dim=-2)
            if norm.normalized:
                x = x / x.square().mean(dim=-1, keepdim=True).sqrt()
    scaled = x if top.scales is None else x * top.scales
    loss = nn.functional.cross_entropy(scaled, top.labels, reduction="sum")
    loss.backward()
    correct = int((scaled.argmax(dim=1) == top.labels).sum())
    return loss.detach(), correct, [(rows, z.grad) for rows, z in zip(inputs, zs, strict=True)]


@compiled
@pytest.mark.parametrize("norm", [None, Norm(5, normalized=False), Norm(3, normalized=True)])
@pytest.mark.parametrize("chosen", [None, torch.tensor([[0, 1, 3], [2, 3, 5]])])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("above", [None, torch.tensor([[0, 1], [1, 0], [1, 1]])])
def test_there_and_back(
    norm: Norm | None, chosen: Tensor | None, fixed: bool, scaled: bool, above: Tensor | None
) -> None:
    x, width = (random(4, 6, 7), 21) if chosen is not None else (random(4, 2, 21), 21)
    D = 10 if fixed else width
    base = Base(chosen, *((random(D, width, seed=3), random(D, seed=4)) if fixed else (None, None)))
    labels = torch.tensor([1, 4, 0, 2] if above is None else [1, 4, 0, 2, 3, 3, 0, 1, 2, 4, 0, 1])
    top = Top(1.0 + 0.3 * random(5, seed=5) if scaled else None, labels)
    given = layers(D, norm, above)
    passed = there_and_back(x, given, base, top)
    assert passed is not None
    loss, correct, rows = by_operators(x, given, base, top)
    assert passed.loss == pytest.approx(float(loss), rel=1e-5)
    assert passed.correct == correct
    for (inputs, dz), (their_inputs, their_dz) in zip(passed.rows, rows, strict=True):
        torch.testing.assert_close(inputs, their_inputs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(dz, their_dz, rtol=1e-4, atol=1e-5)


@compiled
@pytest.mark.parametrize("C", [1, 3, 16, 37])
def test_the_softmax(C: int) -> None:
    """Of what is large, small, alike and not a number; of one layer, whose bias is z."""
    D_in, z = 2, torch.stack([random(C), 80.0 * random(C, seed=1), -1e5 + random(C, seed=2), torch.zeros(C)])
    labels = torch.tensor([C - 1, 0, C // 2, C - 1])
    for row, label in zip(z, labels, strict=True):
        room = torch.cat((torch.zeros(C, D_in), row[:, None], torch.zeros(C, 1)), dim=1)
        layer = AffineLayer(room[:, :D_in], room[:, D_in], None)
        passed = there_and_back(torch.ones(1, D_in), [layer], NOTHING, Top(None, label[None]))
        assert passed is not None
        expected = torch.log_softmax(row.double(), dim=0)
        assert passed.loss == pytest.approx(-float(expected[label]), rel=1e-6, abs=1e-6)
        assert passed.correct == int(row.argmax() == label)  # of the first one where all are alike
        p = expected.exp()
        p[label] -= 1.0
        torch.testing.assert_close(passed.rows[0][1][0], p.float(), rtol=1e-6, atol=1e-7)
        for bad in (torch.nan, torch.inf):
            room[-1, D_in] = bad
            passed = there_and_back(torch.ones(1, D_in), [layer], NOTHING, Top(None, label[None]))
            assert passed is not None
            assert not passed.loss < torch.inf


@compiled
def test_only_where_all_fits() -> None:
    norm = Norm(5, normalized=True)
    (lower, upper), top = layers(7, norm), Top(None, torch.tensor([1, 4, 0, 2]))
    chosen, W, b = torch.tensor([[0, 1], [1, 2]]), random(7, 8), random(7)

    def fits(x: Tensor, given: list[AffineLayer], base: Base = NOTHING, top: Top = top) -> bool:
        return there_and_back(x, given, base, top) is not None

    assert fits(random(4, 2, 7), [lower, upper])
    assert fits(random(4, 3, 4), [lower, upper], Base(chosen, W, b))
    for x in (random(4, 2, 6), random(0, 7), random(8, 7).double(), random(7, 8).T, torch.tensor(1.0), random(7, 7)):
        assert not fits(x, [lower, upper])
    assert not fits(random(4, 2, 7), [lower._replace(bias=lower.bias.clone()), upper])
    assert not fits(random(4, 2, 7), [lower._replace(weight=lower.weight.double()), upper])
    assert not fits(random(4, 2, 7), [lower, upper._replace(weight=upper.weight[:, :5], bias=upper.weight[:, 5])])
    assert not fits(random(4, 7), [lower], top=top)  # norms below the softmax
    for x in (random(4, 12), random(4, 3, 5)):
        assert not fits(x, [lower, upper], Base(chosen, W, b))
    assert not fits(random(4, 3, 4), [lower, upper], Base(chosen, None, None))
    assert not fits(random(4, 2, 8), [lower, upper], Base(None, W.double(), b))
    with FakeTensorMode():
        fake = torch.zeros(4, dtype=torch.int64)
    for scales, labels in ((None, top.labels[:3]), (None, top.labels.int()), (None, fake), (random(4), top.labels)):
        assert not fits(random(4, 2, 7), [lower, upper], top=Top(scales, labels))
    assert not fits(random(4, 3, 4), [lower, upper], Base(torch.zeros_like(fake).view(2, 2), W, b))
    pairs = torch.tensor([[0, 1]])
    assert fits(random(4, 2, 7), [lower, upper._replace(chosen=pairs)])
    for unfit in (pairs.int(), torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1]] * 2), fake.view(2, 2)):
        assert not fits(random(4, 2, 7), [lower, upper._replace(chosen=unfit)])
    assert not fits(random(4, 2, 7), [lower._replace(chosen=pairs), upper])


@compiled
@pytest.mark.parametrize("label", [-100, -1, 5, 2**40])
def test_a_label_that_is_no_class(label: int) -> None:
    with pytest.raises(IndexError, match="none of the classes, 0 to 4"):
        there_and_back(random(4, 2, 7), layers(7, None), NOTHING, Top(None, torch.tensor([0, 1, 2, label])))
