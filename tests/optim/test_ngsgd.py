from __future__ import annotations

import contextlib
import copy
import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import ngsgd.kernels.native
import ngsgd.optim.ngsgd
import ngsgd.optim.online
from ngsgd import NGSGD, OnlineNaturalGradient
from ngsgd.kernels.layer import Norm
from ngsgd.network.affine import Affine
from ngsgd.network.splices import parse_splice_indexes
from ngsgd.network.topology import HiddenLayers, initial_model, insert_hidden_layer

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


@pytest.mark.parametrize("interleaved", [False, True])
def test_training_is_kaldis(trajectory, before, interleaved: bool) -> None:
    """32 minibatches in order: the change of each layer's parameters, and the objective on the way."""
    features = torch.from_numpy(trajectory["egs_features"])
    labels = torch.from_numpy(trajectory["egs_labels"]).long()
    total = 0.0
    with before.interleaved() if interleaved else contextlib.nullcontext():
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


class Joined(Affine):
    """Laid as it is for training, so that the compiled pieces serve; in single precision, as these are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float())


def small_model(
    bias: bool = True, dtype: torch.dtype = torch.float64, linear: type[nn.Linear] = nn.Linear
) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 7, bias=bias), nn.Linear(7, 3, bias=bias)]
    if linear is not nn.Linear:
        for i, given in enumerate(layers):
            layers[i] = linear(given.in_features, given.out_features)
            layers[i].load_state_dict(given.state_dict())
    model = nn.Sequential(layers[0], nn.Tanh(), nn.LayerNorm(7), layers[1])
    if linear is not Joined:
        return model.to(dtype)
    for layer in layers:
        layer.join(True)
    return model


# Foreign layers have hooks; ours hand their rows over themselves.
both_kinds = pytest.mark.parametrize("linear", [nn.Linear, Affine])
all_kinds = pytest.mark.parametrize("linear", [nn.Linear, Affine, Joined])


def small_batch(n: int = 11, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, 5, dtype=dtype, generator=generator), torch.randint(3, (n,), generator=generator)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> float:
    loss = nn.functional.cross_entropy(model(x), y, reduction="sum")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


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


@all_kinds
def test_rows_of_all_passes_since_the_last_step_count_together(linear: type[nn.Linear]) -> None:
    whole, halves = small_model(linear=linear), small_model(linear=linear)
    x, y = small_batch(12)
    together, apart = NGSGD(whole, lr=0.05), NGSGD(halves, lr=0.05)
    step(whole, together, x, y)
    apart.zero_grad()
    for part in (slice(0, 5), slice(5, 12)):
        nn.functional.cross_entropy(halves(x[part]), y[part], reduction="sum").backward()
    apart.step()
    for p, q in zip(whole.parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@all_kinds
def test_zero_grad_forgets_the_rows_too(linear: type[nn.Linear]) -> None:
    model, untouched = small_model(linear=linear), small_model(linear=linear)
    optimizer = NGSGD(model, lr=0.05)
    x, y = small_batch()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.zero_grad()
    optimizer.step()
    for p, q in zip(model.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(p, q)


def test_parameters_used_without_calling_their_layer_get_plain_sgd() -> None:
    """As nn.MultiheadAttention uses the weight of a layer that it owns."""
    model = nn.Linear(5, 3).double()
    start = model.weight.detach().clone()
    optimizer = NGSGD(model, lr=0.1)
    nn.functional.linear(torch.ones(1, 5, dtype=torch.float64), model.weight).sum().backward()
    optimizer.step()
    torch.testing.assert_close(model.weight, start - 0.1)


@all_kinds
def test_a_pass_that_fails_leaves_the_parameters_trainable(linear: type[nn.Linear]) -> None:
    model = small_model(linear=linear)
    optimizer = NGSGD(model, lr=0.05)
    with pytest.raises(RuntimeError):
        model(torch.zeros(2, 6, dtype=torch.float64))
    assert all(p.requires_grad for p in model.parameters())
    step(model, optimizer, *small_batch())


@all_kinds
def test_the_model_is_free_again_when_the_optimizer_is_gone(linear: type[nn.Linear]) -> None:
    model = small_model(linear=linear)
    optimizer = NGSGD(model, lr=0.05)
    step(model, optimizer, *small_batch())
    del optimizer
    gc.collect()
    x, y = small_batch()
    nn.functional.cross_entropy(model(x), y).backward()
    assert all(p.grad is not None for p in model.parameters())


@all_kinds
def test_frozen_layers_stay(linear: type[nn.Linear]) -> None:
    model = small_model(linear=linear)
    model[0].requires_grad_(False)
    start = model[0].weight.clone()
    step(model, NGSGD(model, lr=0.05), *small_batch())
    assert torch.equal(model[0].weight, start)
    assert not model[0].weight.requires_grad


@both_kinds
@pytest.mark.parametrize("preconditioner", ["online", "simple", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_form_lowers_the_loss(preconditioner, dtype: torch.dtype, linear: type[nn.Linear]) -> None:
    model = small_model(dtype=dtype, linear=linear)
    optimizer = NGSGD(model, lr=0.02, preconditioner=preconditioner)
    x, y = small_batch(60, dtype)
    losses = [step(model, optimizer, x, y) for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.dtype == dtype for p in model.parameters())


@pytest.mark.parametrize(
    "arguments",
    [{"lr": -1.0}, {"lr": float("nan")}, {"lr": 0.1, "preconditioner": "adam"}, {"lr": 0.1, "alpha": 0.0},
     {"lr": 0.1, "rank_in": 0}, {"lr": 0.1, "max_change_per_sample": -1.0}],
)  # fmt: skip
def test_refuses_arguments_out_of_range(arguments) -> None:
    with pytest.raises(ValueError, match="must be"):
        NGSGD(small_model(), **arguments)


@all_kinds
def test_a_layer_frozen_later_stays_frozen(linear: type[nn.Linear]) -> None:
    model = small_model(linear=linear)
    optimizer = NGSGD(model, lr=0.05)
    step(model, optimizer, *small_batch())
    model[0].requires_grad_(False)
    start = model[0].weight.clone()
    step(model, optimizer, *small_batch())
    assert torch.equal(model[0].weight, start)
    assert not model[0].weight.requires_grad


@all_kinds
@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_a_parameter_frozen_later_stays_as_it_is(kind: str, linear: type[nn.Linear]) -> None:
    model = small_model(linear=linear)
    optimizer = NGSGD(model, lr=0.05)
    step(model, optimizer, *small_batch())
    frozen = getattr(model[3], kind).requires_grad_(False)
    start = [p.detach().clone() for p in model.parameters()]
    step(model, optimizer, *small_batch())
    for p, before in zip(model.parameters(), start, strict=True):
        assert torch.equal(p, before) == (p is frozen)


@all_kinds
def test_a_weight_changed_between_the_passes_is_noticed(linear: type[nn.Linear]) -> None:
    model = small_model(linear=linear)
    optimizer = NGSGD(model, lr=0.05)
    loss = nn.functional.cross_entropy(model(small_batch()[0]), small_batch()[1])
    with torch.no_grad():
        model[3].weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    optimizer.zero_grad()


@both_kinds
def test_double_precision_is_kept_under_autocast(linear: type[nn.Linear]) -> None:
    model = small_model(linear=linear)
    optimizer = NGSGD(model, lr=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert model[0](small_batch()[0]).dtype is torch.float64
    assert optimizer.max_change_share() == {"0": 0.0, "3": 0.0}


@all_kinds
def test_a_step_between_the_passes_is_noticed(linear: type[nn.Linear]) -> None:
    model = small_model(linear=linear)
    optimizer = NGSGD(model, lr=0.05)
    x, y = small_batch()
    log_posteriors = model(x)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        nn.functional.cross_entropy(log_posteriors, y).backward()


@all_kinds
def test_what_stands_above_may_work_in_place(linear: type[nn.Linear]) -> None:
    model = nn.Sequential(small_model(linear=linear)[0], nn.ReLU(inplace=True))
    start = model[0].weight.detach().clone()
    optimizer = NGSGD(model, lr=0.05)
    model(small_batch()[0]).sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, start)


@all_kinds
def test_an_empty_minibatch_changes_nothing(linear: type[nn.Linear]) -> None:
    model = small_model(linear=linear)
    start = [p.detach().clone() for p in model.parameters()]
    x, y = small_batch()
    step(model, NGSGD(model, lr=0.05), x[:0], y[:0])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), start, strict=True))


def test_large_rows_are_held_by_max_change() -> None:
    """Though the squares of all of them together are too large for a float."""
    layer = Affine(5, 7)
    layer.join(True)
    optimizer = NGSGD(layer, lr=0.01, preconditioner="none", max_change_per_sample=0.1)
    (1e18 * layer(torch.ones(600, 5))).sum().backward()
    optimizer.step()
    assert layer.weight.isfinite().all()
    assert optimizer.max_change_share() == {"": 1.0}


def test_norms_go_back_once() -> None:
    layer = Affine(5, 6)
    layer.join(True)
    layer.norm = Norm(2, normalized=True)
    layer.watch(lambda x, dz: None)
    y = layer(small_batch(dtype=torch.float32)[0]).sum()
    y.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_a_bias_that_somebody_has_laid_elsewhere_counts() -> None:
    layer = Affine(5, 7)
    layer.join(True)
    layer.watch(lambda x, dy: None)
    layer.bias.data = torch.full((7,), 100.0)
    assert layer(torch.zeros(2, 5)).tolist() == [[100.0] * 7] * 2


@all_kinds
def test_a_copy_of_the_model_is_its_own(linear: type[nn.Linear]) -> None:
    model = small_model(linear=linear)
    optimizer = NGSGD(model, lr=0.05)
    average = copy.deepcopy(model).requires_grad_(False)
    average(small_batch()[0])
    assert not any(p.requires_grad for p in average.parameters())
    step(model, optimizer, *small_batch())


def test_a_layer_of_computed_weights_gets_plain_sgd() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))).double()
    start = [p.detach().clone() for p in model.parameters()]
    step(model, NGSGD(model, lr=0.05), *small_batch())
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), start, strict=True))


@all_kinds
def test_it_works_under_autocast(linear: type[nn.Linear]) -> None:
    model = small_model(dtype=torch.float32, linear=linear)
    optimizer = NGSGD(model, lr=0.05)
    x, y = small_batch(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.cross_entropy(model(x), y, reduction="sum")
    loss.backward()
    optimizer.step()
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@all_kinds
@pytest.mark.parametrize("preconditioner", ["online", "none"])
def test_a_step_within_autocast_is_that_outside(preconditioner: str, linear: type[nn.Linear]) -> None:
    stepped = []
    for within in (False, True):
        model = small_model(dtype=torch.float32, linear=linear)
        optimizer = NGSGD(model, lr=0.05, preconditioner=preconditioner)
        x, y = small_batch(dtype=torch.float32)
        nn.functional.cross_entropy(model(x), y, reduction="sum").backward()
        with torch.autocast("cpu", torch.bfloat16, enabled=within):
            optimizer.step()
        stepped.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*stepped, strict=True))
    x = torch.randn(20, 6)
    with torch.autocast("cpu", torch.bfloat16):
        within, _ = OnlineNaturalGradient(2).precondition(x)
    assert torch.equal(within, OnlineNaturalGradient(2).precondition(x)[0])


class Products(TorchDispatchMode):
    """Counts matrix products that are made by PyTorch's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten = torch.ops.aten
        self.number += func.overloadpacket in (aten.mm, aten.addmm, aten.addmm_, aten.mv, aten.addmv_, aten.bmm)
        return func(*args, **kwargs or {})


@pytest.mark.skipif(ngsgd.kernels.native.library is None, reason="installed without a C compiler")
@pytest.mark.parametrize("preconditioner", ["online", "none"])
def test_a_network_of_the_recipe_trains_in_compiled_pieces(preconditioner: str) -> None:
    """All but the transform of the features, which is not trained."""
    layers = HiddenLayers(parse_splice_indexes("layer0/-1:0:1 layer1/-2:1"), "pnorm", 24, 6, batchnorm=False)
    model = initial_model(layers, (np.eye(12), np.zeros(12)), np.ones(5, np.int64), 0)
    model = insert_hidden_layer(model, layers, 0).train()
    x, y = torch.randn(40, 6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 5
    with model.interleaved():
        optimizer = NGSGD(
            model, lr=0.02, rank_in=3, rank_out=8, preconditioner=preconditioner, max_change_per_sample=0.1
        )
        for t in range(15):
            with Products() if t else contextlib.nullcontext() as seen:  # the first one makes estimates out of nothing
                loss = nn.functional.nll_loss(model(x)[:, 0], y, reduction="sum")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            assert seen is None or seen.number == 1, t


class Waits(TorchDispatchMode):
    """Counts what makes the host wait where tensors lie on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.numbers += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


def test_a_step_waits_for_a_gpu_once_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen without one: the step takes the course that it takes on a GPU, and what would wait is counted."""
    for module in (ngsgd.optim.ngsgd, ngsgd.optim.online):
        monkeypatch.setattr(module, "in_reach", lambda tensor: False)
    monkeypatch.setattr(ngsgd.kernels.native, "library", None)
    copies = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: copies.append(tensor.shape) or cpu(tensor))
    model = small_model(dtype=torch.float32)
    optimizer = NGSGD(model, lr=0.02, rank_in=2, rank_out=2)
    x, y = small_batch(60, torch.float32)
    step(model, optimizer, x, y)  # the first one makes estimates out of nothing
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
