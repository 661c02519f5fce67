"""The fused forward and backward pass of a network, compared with its components one by one."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from ngsgd import NGSGD
from ngsgd.network import components as c
from ngsgd.network.affine import Affine
from ngsgd.network.model import AcousticModel
from ngsgd.network.splices import parse_splice_indexes
from ngsgd.network.topology import HiddenLayers, initial_model, insert_hidden_layer


@contextlib.contextmanager
def in_training(splices: str = "layer0/-1:0:1 layer1/-2:1", const_dim: int = 0) -> Iterator[AcousticModel]:
    layers = HiddenLayers(parse_splice_indexes(splices), "pnorm", 24, 6, batchnorm=False)
    width = 3 * (4 - const_dim) + const_dim
    model = initial_model(layers, (np.eye(width), np.ones(width)), np.arange(1, 6), 0, const_dim=const_dim)
    model = insert_hidden_layer(model, layers, 0).train()
    with model.training_layout():
        optimizer = NGSGD(model, lr=0.05)
        yield model
        del optimizer


def batch(num_frames: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(8, 5 + num_frames, 4, generator=generator), torch.arange(8 * num_frames) % 5


def rows_of_layers(model: AcousticModel, run: Callable[[], tuple[Tensor, Tensor]]) -> list[Tensor]:
    """The loss, the number of correct rows, and the rows that each layer passes to its gradient hooks."""
    seen: list[tuple[Tensor, Tensor]] = []
    affines = [m for m in model.chain() if isinstance(m, Affine)]
    handles = [m.register_gradient_hook(lambda *rows: seen.append(rows)) for m in affines]
    loss, correct = run()
    for handle in handles:
        handle.remove()
    return [loss, correct, *(t.reshape(-1, t.shape[-1]).clone() for pair in seen for t in pair)]


def fused_rows(model: AcousticModel, x: Tensor, labels: Tensor) -> list[Tensor]:
    """As `rows_of_layers`; fails if the network calls a module."""
    calls: list[object] = []
    with pytest.MonkeyPatch.context() as m:
        m.setattr(nn.Module, "__call__", lambda *args: calls.append(args))
        found = rows_of_layers(model, lambda: model.backpropagate(x, labels))
    assert not calls
    return found


def one_by_one(model: AcousticModel, x: Tensor, labels: Tensor) -> list[Tensor]:
    def run() -> tuple[Tensor, Tensor]:
        y, classes = model(x).flatten(0, 1), labels.flatten()
        loss = nn.functional.nll_loss(y, classes, reduction="sum")
        loss.backward()
        return loss.detach(), (y.argmax(dim=1) == classes).sum()

    return rows_of_layers(model, run)


def check(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs) == 2 + 2 * 3
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("above", ["", " layer1/-2:1", " layer1/-1:0:1", " layer1/-1:1"])
@pytest.mark.parametrize("num_frames", [1, 3])
def test_fused_pass_agrees_with_the_components(above: str, num_frames: int) -> None:
    """For splices that use all positions in order and for overlapping ones, at the input and above."""
    with in_training("layer0/-1:0:1" + above) as model:
        x, labels = batch(num_frames)
        given = x[:, : num_frames + model.left_context + model.right_context], labels.view(8, -1)
        check(fused_rows(model, *given), one_by_one(model, *given))


def test_components_below_the_fused_part_are_called() -> None:
    with in_training(const_dim=1) as model:
        calls: list[nn.Module] = []
        for component in model.chain():
            call = component.forward
            component.forward = lambda *args, m=component, f=call: (calls.append(m), f(*args))[1]
        found = rows_of_layers(model, lambda: model.backpropagate(*batch()))
        assert [m.kind for m in calls] == ["splice"]
        check(found, one_by_one(model, *batch()))


def test_modules_are_called_where_there_are_hooks_or_autograd_is_needed() -> None:
    for kind in ("splice", "fixed_affine", "affine", "pnorm", "normalize", "fixed_scale", "softmax"):
        with in_training() as model:
            inside: list[object] = []
            last = [m for m in model.chain() if m.kind == kind][-1]
            last.register_forward_hook(lambda module, given, y, inside=inside: inside.append(y))
            check(rows_of_layers(model, lambda model=model: model.backpropagate(*batch())), one_by_one(model, *batch()))
            assert len(inside) == 2
    inside = []
    with in_training() as model:
        model.register_forward_hook(lambda module, given, y: inside.append(y))
        model.backpropagate(*batch())
        assert len(inside) == 1
    with in_training() as model:
        handle = nn.modules.module.register_module_forward_hook(lambda module, given, y: inside.append(y))
        model.backpropagate(*batch())
        handle.remove()
        assert len(inside) > 9
    with in_training() as model:
        x, labels = batch()
        with torch.no_grad(), pytest.raises(RuntimeError, match="does not require grad"):
            model.backpropagate(x, labels)
        model.backpropagate(x.requires_grad_(), labels)
        assert x.grad is not None
        assert x.grad.any()
        model.chain()[2].bias.requires_grad_(False)
        model.backpropagate(x.detach(), labels)
        assert model.chain()[2].weight.grad is not None


def test_other_components_are_not_fused() -> None:
    """A chain that cannot be fused: a component below that has running statistics must be called once."""
    for below in ([c.BatchNorm(4)], [c.Tanh(4)], [Affine(4, 4), c.ReLU(4)], [c.PNorm(8, 4, p=3.0)]):
        width = below[0].input_dim
        model = AcousticModel([(str(i), m) for i, m in enumerate([*below, Affine(4, 5), c.Softmax(5)])]).train()
        with model.training_layout():
            assert model._fused is None
            loss, _ = model.backpropagate(torch.ones(3, 1, width), torch.tensor([0, 1, 2]))
            assert float(loss) == pytest.approx(3 * np.log(5))


@pytest.mark.parametrize("fused", [False, True])
def test_wrong_shapes_and_labels_are_errors(fused: bool) -> None:
    with in_training() as model:
        x, labels = batch()
        if not fused:
            model._fused = None
        for label in (-100, 5):  # the former is ignored by nll_loss
            labels[3] = label
            with pytest.raises(IndexError):
                model.backpropagate(x, labels)
        labels[3] = 3
        with pytest.raises(ValueError, match=r"batch_size|labels of shape"):
            model.backpropagate(x, labels[1:])
        with pytest.raises(ValueError, match="expected features"):
            model.backpropagate(x[..., 1:], labels)
        with pytest.raises(ValueError, match="fewer than the network's context"):
            model.backpropagate(x[:, 1:], labels)


@pytest.mark.parametrize("fused", [False, True])
def test_result_has_device_and_dtype_of_the_features(fused: bool) -> None:
    """Whatever the default device is; also for an empty minibatch."""
    with in_training() as model:
        x, labels = batch()
        if not fused:
            model._fused = None
        with torch.device("meta"):
            for size in (8, 0):
                loss, correct = model.backpropagate(x[:size], labels[:size])
                assert (loss.dtype, correct.dtype) == (torch.float32, torch.int64)
                assert loss.device == correct.device == x.device
        assert (float(loss), int(correct)) == (0.0, 0)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_saved_tensors_may_be_copies(checkpointed: bool) -> None:
    with in_training() as model:
        x, labels = batch()
        expected = one_by_one(model, x, labels)

        def run() -> tuple[Tensor, Tensor]:
            kept = contextlib.nullcontext() if checkpointed else saved_tensors_hooks(torch.clone, torch.clone)
            with kept:
                y = checkpoint(model, x, use_reentrant=False) if checkpointed else model(x)
                loss = nn.functional.nll_loss(y.flatten(0, 1), labels, reduction="sum")
            with contextlib.suppress(RuntimeError):
                torch.full((200_000,), torch.nan)  # overwrites memory that must not be needed any more
            loss.backward()
            return loss.detach(), (y.flatten(0, 1).argmax(dim=1) == labels).sum()

        for ours, theirs in zip(rows_of_layers(model, run), expected, strict=True):
            assert torch.equal(ours, theirs)


def test_replaced_parameters_are_used() -> None:
    with in_training() as model:
        model.load_state_dict({name: torch.zeros_like(t) for name, t in model.state_dict().items()}, assign=True)
        x, labels = batch()
        loss, _ = model.backpropagate(x, labels)
        assert float(loss) == pytest.approx(8 * np.log(5))
        torch.testing.assert_close(model(x).exp(), torch.full((8, 1, 5), 0.2))


def test_copies_have_no_gradient_hooks() -> None:
    with in_training() as model:
        x, labels = batch()
        expected = model(x)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(other(x), expected)
            other.backpropagate(x, labels)
            assert all(p.grad is not None for p in other.parameters())
            if other._fused is not None:
                assert other._fused.softmax is other.chain()[-1]
