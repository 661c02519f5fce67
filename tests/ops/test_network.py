"""The forward and backward pass of a minibatch through affine layers."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from ngsgd import ops
from ngsgd.ops import AffineLayer, InputTransform, Norm, OutputLoss, cpu

from .helpers import needs_cpu_backend, random

NO_TRANSFORM = InputTransform()


def two_layers(D: int, norm: Norm | None, positions: Tensor | None = None) -> list[AffineLayer]:
    """Two layers, the upper one with five classes, on two outputs of the lower one."""
    lower, upper = random(15, -(-(D + 1) // 16) * 16), random(5, 32, seed=2)
    D_in = 2 * (15 if norm is None else 15 // norm.k)
    return [
        AffineLayer(lower[:, :D], lower[:, D], norm),
        AffineLayer(upper[:, :D_in], upper[:, D_in], None, positions),
    ]


def by_autograd(
    x: Tensor, layers: list[AffineLayer], transform: InputTransform, output: OutputLoss
) -> tuple[Tensor, int, list[tuple[Tensor, Tensor]]]:
    """The same in float64, with derivatives by autograd."""
    x = x.double()
    if transform.positions is not None:
        x = x[:, transform.positions].flatten(2)
    if transform.weight is not None:
        x = nn.functional.linear(x, transform.weight.double(), transform.bias.double())
    inputs, zs = [], []
    B = len(x)
    for weight, bias, norm, positions in layers:
        if positions is not None:
            x = x.view(B, -1, x.shape[-1])[:, positions]
        x = x.reshape(-1, weight.shape[1])
        inputs.append(torch.cat((x.detach(), x.new_ones(len(x), 1)), dim=1))
        x = nn.functional.linear(x, weight.double(), bias.double()).requires_grad_()
        x.retain_grad()
        zs.append(x)
        if norm is not None:
            x = x.view(len(x), norm.k, -1).norm(dim=-2)
            if norm.normalized:
                x = x / x.square().mean(dim=-1, keepdim=True).sqrt()
    scaled = x if output.scales is None else x * output.scales
    loss = nn.functional.cross_entropy(scaled, output.labels, reduction="sum")
    loss.backward()
    correct = int((scaled.argmax(dim=1) == output.labels).sum())
    return loss.detach(), correct, [(rows, z.grad) for rows, z in zip(inputs, zs, strict=True)]


@pytest.mark.parametrize("norm", [None, Norm(5, normalized=False), Norm(3, normalized=True)])
@pytest.mark.parametrize("spliced", [None, torch.tensor([[0, 1, 3], [2, 3, 5]])])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("positions", [None, torch.tensor([[0, 1], [1, 0], [1, 1]])])
def test_forward_backward_agrees_with_autograd(
    backend: ModuleType, norm: Norm | None, spliced: Tensor | None, fixed: bool, scaled: bool, positions: Tensor | None
) -> None:
    width = 21
    x = random(4, 2, width) if spliced is None else random(4, 6, 7)
    D = 10 if fixed else width
    transform = InputTransform(spliced, *((random(D, width, seed=3), random(D, seed=4)) if fixed else (None, None)))
    labels = torch.tensor([1, 4, 0, 2] if positions is None else [1, 4, 0, 2, 3, 3, 0, 1, 2, 4, 0, 1])
    output = OutputLoss(1.0 + 0.3 * random(5, seed=5) if scaled else None, labels)
    layers = two_layers(D, norm, positions)
    result = backend.forward_backward(x, layers, transform, output)
    loss, correct, rows = by_autograd(x, layers, transform, output)
    assert float(result.loss) == pytest.approx(float(loss), rel=1e-5)
    assert int(result.correct) == correct
    for (inputs, dz), (expected_inputs, expected_dz) in zip(result.rows, rows, strict=True):
        torch.testing.assert_close(inputs.double(), expected_inputs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(dz.double(), expected_dz, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("C", [1, 3, 16, 37])
def test_softmax_of_extreme_outputs(backend: ModuleType, C: int) -> None:
    """A single layer whose bias is z: large, small, equal and non-finite outputs."""
    D_in, z = 2, torch.stack([random(C), 80.0 * random(C, seed=1), -1e5 + random(C, seed=2), torch.zeros(C)])
    labels = torch.tensor([C - 1, 0, C // 2, C - 1])
    for row, label in zip(z, labels, strict=True):
        matrix = torch.cat((torch.zeros(C, D_in), row[:, None], torch.zeros(C, 1)), dim=1)
        layers, output = [AffineLayer(matrix[:, :D_in], matrix[:, D_in])], OutputLoss(None, label[None])
        result = backend.forward_backward(torch.ones(1, D_in), layers, InputTransform(), output)
        expected = torch.log_softmax(row.double(), dim=0)
        assert float(result.loss) == pytest.approx(-float(expected[label]), rel=1e-6, abs=1e-6)
        assert int(result.correct) == int(row.argmax() == label)  # of equal outputs the first one counts
        p = expected.exp()
        p[label] -= 1.0
        torch.testing.assert_close(result.rows[0][1][0], p.float(), rtol=1e-6, atol=1e-6)
        for bad in (torch.nan, torch.inf):
            matrix[-1, D_in] = bad
            result = backend.forward_backward(torch.ones(1, D_in), layers, InputTransform(), output)
            assert not float(result.loss) < torch.inf


@pytest.mark.parametrize("label", [-100, -1, 5, 2**40])
def test_label_out_of_range_is_an_error(backend: ModuleType, label: int) -> None:
    output = OutputLoss(None, torch.tensor([0, 1, 2, label]))
    with pytest.raises(IndexError, match="none of the classes, 0 to 4"):
        backend.forward_backward(random(4, 2, 7), two_layers(7, None), InputTransform(), output)


@needs_cpu_backend
def test_cpu_backend_supports_contiguous_float32_only() -> None:
    (lower, upper), output = two_layers(7, Norm(5, normalized=True)), OutputLoss(None, torch.tensor([1, 4, 0, 2]))
    positions, W, b = torch.tensor([[0, 1], [1, 2]]), random(7, 8), random(7)

    def supported(
        x: Tensor, layers: list[AffineLayer], transform: InputTransform = NO_TRANSFORM, output: OutputLoss = output
    ) -> bool:
        return cpu.supports_forward_backward(x, layers, transform, output)

    assert supported(random(4, 2, 7), [lower, upper])
    assert supported(random(4, 3, 4), [lower, upper], InputTransform(positions, W, b))
    for x in (random(0, 7), random(8, 7).double(), random(7, 8).T):
        assert not supported(x, [lower, upper])
    assert not supported(random(4, 2, 7), [lower._replace(bias=lower.bias.clone()), upper])
    assert not supported(random(4, 2, 7), [lower._replace(weight=lower.weight.double()), upper])
    assert not supported(random(4, 2, 8), [lower, upper], InputTransform(None, W.double(), b))
    with FakeTensorMode():
        fake = torch.zeros(4, dtype=torch.int64)
    for labels in (output.labels.int(), fake):
        assert not supported(random(4, 2, 7), [lower, upper], output=OutputLoss(None, labels))
    assert not supported(random(4, 3, 4), [lower, upper], InputTransform(fake.view(2, 2), W, b))
    for chosen in (torch.tensor([[0, 1]]).int(), fake.view(2, 2)):
        assert not supported(random(4, 2, 7), [lower, upper._replace(positions=chosen)])


def test_shapes_that_do_not_fit_are_an_error() -> None:
    (lower, upper), output = two_layers(7, Norm(5, normalized=True)), OutputLoss(None, torch.tensor([1, 4, 0, 2]))
    positions, W, b = torch.tensor([[0, 1], [1, 2]]), random(7, 8), random(7)

    def refused(
        x: Tensor, layers: list[AffineLayer], transform: InputTransform = NO_TRANSFORM, output: OutputLoss = output
    ) -> None:
        with pytest.raises(ValueError, match=r"expected|takes|outputs"):
            ops.forward_backward(x, layers, transform, output)

    ops.forward_backward(random(4, 2, 7), [lower, upper], InputTransform(), output)
    for x in (random(4, 2, 6), torch.tensor(1.0), random(7, 7)):
        refused(x, [lower, upper])
    refused(random(4, 2, 7), [])
    refused(random(4, 2, 7), [lower, upper._replace(weight=upper.weight[:, :5], bias=upper.weight[:, 5])])
    refused(random(4, 7), [lower])  # norms below the softmax
    for x in (random(4, 12), random(4, 3, 5)):
        refused(x, [lower, upper], InputTransform(positions, W, b))
    refused(random(4, 3, 4), [lower, upper], InputTransform(positions, None, None))
    refused(random(4, 2, 7), [lower, upper], output=OutputLoss(None, output.labels[:3]))
    refused(random(4, 2, 7), [lower, upper], output=OutputLoss(random(4), output.labels))
    for chosen in (torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1]] * 2)):
        refused(random(4, 2, 7), [lower, upper._replace(positions=chosen)])
    refused(random(4, 2, 7), [lower._replace(positions=torch.tensor([[0, 1]])), upper])


def test_results_have_no_autograd_graph(backend: ModuleType) -> None:
    """A graph would keep each minibatch's arrays for as long as its loss."""
    layers = [
        layer._replace(weight=torch.nn.Parameter(layer.weight), bias=torch.nn.Parameter(layer.bias))
        for layer in two_layers(7, Norm(5, normalized=True))
    ]
    output = OutputLoss(None, torch.tensor([1, 4, 0, 2]))
    result = backend.forward_backward(random(4, 2, 7), layers, InputTransform(), output)
    assert not result.loss.requires_grad
    assert not any(t.requires_grad for rows in result.rows for t in rows)


@needs_cpu_backend
def test_a_transform_without_bias_is_left_to_the_reference() -> None:
    transform = InputTransform(None, random(7, 8), None)
    args = (
        random(4, 2, 8),
        two_layers(7, Norm(5, normalized=True)),
        transform,
        OutputLoss(None, torch.tensor([1, 4, 0, 2])),
    )
    assert not cpu.supports_forward_backward(*args)
    ops.forward_backward(*args)


def test_an_empty_minibatch_below_positions_is_an_error() -> None:
    layers = two_layers(7, None, torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match="its positions do not fit"):
        ops.forward_backward(random(0, 2, 7), layers, InputTransform(), OutputLoss(None, torch.zeros(0).long()))
