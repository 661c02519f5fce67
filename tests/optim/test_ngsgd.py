from __future__ import annotations

import contextlib
import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ngsgd import NGSGD, OnlineNaturalGradient, ops
from ngsgd.network.splices import parse_splice_indexes
from ngsgd.network.topology import HiddenLayers, initial_model, insert_hidden_layer

from .models import both_kinds, small_batch, small_model, step

LAYERS = ("affine0", "affine1", "affine2", "output_affine")


@pytest.fixture
def trajectory(kaldi: Path):
    return np.load(kaldi / "golden" / "trajectory.npz")


@pytest.fixture
def before(trajectory):
    """The network of the reference run, with the parameters from which Kaldi trained."""
    layers = HiddenLayers(
        parse_splice_indexes("layer0/-2:-1:0:1:2 layer1/-2:1 layer2/-3:3"), "pnorm", 400, 80, batchnorm=False
    )
    model = initial_model(layers, (trajectory["lda_weight"], trajectory["lda_bias"]), np.ones(144, np.int64), 0)
    for _ in range(2):
        model = insert_hidden_layer(model, layers, 0)
    state = model.state_dict()
    state["components.output_scale.scales"] = torch.from_numpy(trajectory["output_scale"])
    for i, name in enumerate(LAYERS):
        state[f"components.{name}.weight"] = torch.from_numpy(trajectory[f"affine{i}_weight_before"])
        state[f"components.{name}.bias"] = torch.from_numpy(trajectory[f"affine{i}_bias_before"])
    model.load_state_dict(state)
    return model


def test_posteriors_are_kaldis(trajectory, before) -> None:
    x = torch.from_numpy(trajectory["egs_features"][:256])
    with torch.no_grad():
        posteriors = before(x)[:, 0].exp().numpy()
    assert np.abs(posteriors - trajectory["posteriors_before_first_256"]).max() < 1e-5


@pytest.mark.parametrize("training_layout", [False, True])
def test_training_is_kaldis(trajectory, before, training_layout: bool) -> None:
    """32 minibatches in order: the change of each layer's parameters, and the objective on the way."""
    features = torch.from_numpy(trajectory["egs_features"])
    labels = torch.from_numpy(trajectory["egs_labels"]).long()
    total = 0.0
    with before.training_layout() if training_layout else contextlib.nullcontext():
        optimizer = NGSGD(before, lr=float(trajectory["learning_rate"]))
        for x, y in zip(features.split(128), labels.split(128), strict=True):
            loss = nn.functional.nll_loss(before(x)[:, 0], y, reduction="sum")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total -= float(loss.detach())
    assert total / len(labels) == pytest.approx(float(trajectory["mean_log_prob"]), abs=1e-4)
    for i, name in enumerate(LAYERS):
        for kind in ("weight", "bias"):
            start, end = trajectory[f"affine{i}_{kind}_before"], trajectory[f"affine{i}_{kind}_after"]
            change = getattr(before.components[name], kind).detach().numpy() - start
            assert np.linalg.norm(change - (end - start)) <= 1e-3 * np.linalg.norm(end - start), (name, kind)


@pytest.mark.parametrize("bias", [True, False])
def test_without_preconditioning_it_is_plain_sgd(bias: bool) -> None:
    ours, reference = small_model(bias), small_model(bias)
    optimizer = NGSGD(ours, lr=0.05, preconditioner="none")
    plain = torch.optim.SGD(reference.parameters(), lr=0.05)
    for n in (11, 4, 9):
        assert step(ours, optimizer, *small_batch(n)) == pytest.approx(step(reference, plain, *small_batch(n)))
    for p, q in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("max_change", [0.0, 0.05])
def test_the_update_is_the_one_of_the_paper(max_change: float) -> None:
    """W,b <- W,b + l gamma_x gamma_y s Y^^T X^ of rows that are worked out here by hand."""
    model = nn.Linear(5, 3).double()
    start = copy.deepcopy(model)
    x, y = small_batch()
    optimizer = NGSGD(model, lr=0.3, rank_in=2, rank_out=1, max_change_per_sample=max_change)
    step(model, optimizer, x, y)

    X = torch.cat((x, torch.ones(len(x), 1, dtype=x.dtype)), dim=1)
    Y = nn.functional.one_hot(y, 3) - start(x).softmax(dim=1).detach()  # derivative of the log-probability
    X_hat, gamma_x = OnlineNaturalGradient(2).precondition(X)
    Y_hat, gamma_y = OnlineNaturalGradient(1).precondition(Y)
    change = 0.3 * gamma_x * gamma_y * sum(a.norm() * b.norm() for a, b in zip(X_hat, Y_hat, strict=True))
    s = min(1.0, max_change * len(x) / float(change)) if max_change else 1.0
    assert (s < 1.0) == bool(max_change)
    delta = 0.3 * gamma_x * gamma_y * s * Y_hat.T @ X_hat
    torch.testing.assert_close(model.weight, start.weight + delta[:, :5])
    torch.testing.assert_close(model.bias, start.bias + delta[:, 5])
    assert optimizer.max_change_share() == {"": float(bool(max_change))}


def test_parameters_used_without_calling_their_layer_get_plain_sgd() -> None:
    """As nn.MultiheadAttention uses the weight of a layer that it owns."""
    model = nn.Linear(5, 3).double()
    start = model.weight.detach().clone()
    optimizer = NGSGD(model, lr=0.1)
    nn.functional.linear(torch.ones(1, 5, dtype=torch.float64), model.weight).sum().backward()
    optimizer.step()
    torch.testing.assert_close(model.weight, start - 0.1)


@pytest.mark.parametrize(
    "arguments",
    [{"lr": -1.0}, {"lr": float("nan")}, {"lr": 0.1, "preconditioner": "adam"}, {"lr": 0.1, "alpha": 0.0},
     {"lr": 0.1, "rank_in": 0}, {"lr": 0.1, "max_change_per_sample": -1.0}],
)  # fmt: skip
def test_refuses_arguments_out_of_range(arguments) -> None:
    with pytest.raises(ValueError, match="must be"):
        NGSGD(small_model(), **arguments)


@both_kinds
def test_a_layer_of_computed_weights_gets_plain_sgd(linear: type[nn.Linear]) -> None:
    layer = linear(5, 3)
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(layer)).double()
    start = [p.detach().clone() for p in model.parameters()]
    step(model, NGSGD(model, lr=0.05), *small_batch())
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), start, strict=True))


class Products(TorchDispatchMode):
    """Counts the matrix products computed by PyTorch's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten = torch.ops.aten
        self.number += func.overloadpacket in (aten.mm, aten.addmm, aten.addmm_, aten.mv, aten.addmv_, aten.bmm)
        return func(*args, **kwargs or {})


@pytest.mark.skipif(not ops.BACKENDS, reason="installed without a C compiler")
@pytest.mark.parametrize("preconditioner", ["online", "none"])
def test_network_of_the_recipe_trains_in_c(preconditioner: str) -> None:
    """No matrix product is computed by PyTorch's operators."""
    layers = HiddenLayers(parse_splice_indexes("layer0/-1:0:1 layer1/-2:1"), "pnorm", 24, 6, batchnorm=False)
    model = initial_model(layers, (np.eye(12), np.zeros(12)), np.ones(5, np.int64), 0)
    model = insert_hidden_layer(model, layers, 0).train()
    x, y = torch.randn(40, 6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 5
    with model.training_layout():
        optimizer = NGSGD(
            model, lr=0.02, rank_in=3, rank_out=8, preconditioner=preconditioner, max_change_per_sample=0.1
        )
        for t in range(15):
            with Products() if t else contextlib.nullcontext() as seen:  # the first step starts the estimates
                optimizer.zero_grad()
                model.backpropagate(x, y)
                optimizer.step()
            assert seen is None or seen.number == 0, t


class Waits(TorchDispatchMode):
    """Counts the operations that make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.numbers += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


def test_a_step_waits_for_a_gpu_once_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: the step takes the path that it takes on one, and the operations that would wait are counted."""
    monkeypatch.setattr(ops.reference, "is_on_host", lambda tensor: False)
    monkeypatch.setattr(ops, "BACKENDS", [])
    copies = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: copies.append(tensor.shape) or cpu(tensor))
    model = small_model(dtype=torch.float32)
    optimizer = NGSGD(model, lr=0.02, rank_in=2, rank_out=2)
    x, y = small_batch(60, torch.float32)
    step(model, optimizer, x, y)  # the first step starts the estimates
    waits = []
    for _ in range(24):
        loss = nn.functional.cross_entropy(model(x), y, reduction="sum")
        optimizer.zero_grad()
        loss.backward()
        copies.clear()
        with Waits() as seen:
            optimizer.step()
        assert seen.numbers == 0
        waits.append(len(copies))
    assert waits == [*[1] * 9, *[0, 0, 0, 1] * 3, 0, 0, 0]


def test_a_failed_update_changes_no_estimate() -> None:
    model = small_model(dtype=torch.float32)
    optimizer = NGSGD(model, lr=0.02, rank_in=2, rank_out=2)
    step(model, optimizer, *small_batch(60, torch.float32))
    before = [side._state for layer in optimizer._layers for side in (layer.x_side, layer.y_side)]
    for layer, D_in, D_out in zip(optimizer._layers, (5, 7), (7, 3), strict=True):
        layer.adapter.collect(torch.ones(4, D_in), torch.full((4, D_out), torch.nan if D_out == 3 else 1.0))
    with pytest.raises(FloatingPointError, match="not finite"):
        optimizer.step()
    assert all(
        state is side._state
        for state, side in zip(before, (s for la in optimizer._layers for s in (la.x_side, la.y_side)), strict=True)
    )


def test_the_optimiser_may_be_made_before_the_training_layout() -> None:
    layers = HiddenLayers(parse_splice_indexes("layer0/-1:0:1"), "pnorm", 24, 6, batchnorm=False)
    models = [initial_model(layers, (np.eye(12), np.zeros(12)), np.ones(5, np.int64), 0).train() for _ in range(2)]
    x, y = torch.randn(40, 3, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 5
    early = NGSGD(models[0], lr=0.02, rank_in=3, rank_out=8)
    for model, optimizer in zip(models, (early, None), strict=True):
        with model.training_layout():
            optimizer = optimizer or NGSGD(model, lr=0.02, rank_in=3, rank_out=8)
            for _ in range(3):
                optimizer.zero_grad()
                model.backpropagate(x, y)
                optimizer.step()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(p, q)
    early.zero_grad()
    models[0].backpropagate(x, y)
    with pytest.raises(RuntimeError, match="reordered since the optimiser's first step"):
        early.step()
