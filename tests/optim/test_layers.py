"""The optimiser with each kind of layer adapter."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import nn

from ngsgd import NGSGD, OnlineNaturalGradient
from ngsgd.network.affine import Affine
from ngsgd.ops import Norm
from ngsgd.optim.layers import LayerAdapter, adapter_for, register_adapter

from .models import all_kinds, both_kinds, small_batch, small_model, step


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
    whole = small_model(linear=linear)
    model = nn.Sequential(whole[0], nn.Tanh(), whole[3])  # without what is updated by operators
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
    layer.fuse_bias(True)
    optimizer = NGSGD(layer, lr=0.01, preconditioner="none", max_change_per_sample=0.1)
    (1e18 * layer(torch.ones(600, 5))).sum().backward()
    optimizer.step()
    assert layer.weight.isfinite().all()
    assert optimizer.max_change_share() == {"": 1.0}


def test_norms_go_back_once() -> None:
    layer = Affine(5, 6)
    layer.fuse_bias(True)
    layer.norm = Norm(2, normalized=True)
    layer.register_gradient_hook(lambda x, dz: None)
    y = layer(small_batch(dtype=torch.float32)[0]).sum()
    y.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_a_bias_that_somebody_has_laid_elsewhere_counts() -> None:
    layer = Affine(5, 7)
    layer.fuse_bias(True)
    layer.register_gradient_hook(lambda x, dy: None)
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
    results = []
    for within in (False, True):
        model = small_model(dtype=torch.float32, linear=linear)
        optimizer = NGSGD(model, lr=0.05, preconditioner=preconditioner)
        x, y = small_batch(dtype=torch.float32)
        nn.functional.cross_entropy(model(x), y, reduction="sum").backward()
        with torch.autocast("cpu", torch.bfloat16, enabled=within):
            optimizer.step()
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*results, strict=True))
    x = torch.randn(20, 6)
    with torch.autocast("cpu", torch.bfloat16):
        within, _ = OnlineNaturalGradient(2).precondition(x)
    assert torch.equal(within, OnlineNaturalGradient(2).precondition(x)[0])


def test_the_adapter_of_the_nearest_base_class_is_used() -> None:
    class Scaled(nn.Linear):
        pass

    @register_adapter(Scaled)
    class ScaledAdapter(LayerAdapter):
        pass

    class Derived(Scaled):
        pass

    assert type(adapter_for(Derived(3, 2))) is ScaledAdapter
    assert type(adapter_for(Affine(3, 2))).__name__ == "AffineAdapter"
    assert type(adapter_for(nn.Linear(3, 2))).__name__ == "LinearAdapter"
    assert adapter_for(nn.Conv1d(3, 2, 1)) is None
    assert adapter_for(nn.Linear(3, 2).requires_grad_(False)) is None
    assert adapter_for(torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))) is None
