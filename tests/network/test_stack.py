"""Stacks of components beside the same components, one by one."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from ngsgd import NGSGD
from ngsgd.kernels.native import library
from ngsgd.network.model import AcousticModel
from ngsgd.network.splices import parse_splice_indexes
from ngsgd.network.stack import Stack
from ngsgd.network.topology import HiddenLayers, initial_model, insert_hidden_layer

compiled = pytest.mark.skipif(library is None, reason="installed without a C compiler")


@contextlib.contextmanager
def in_training(splices: str = "layer0/-1:0:1 layer1/-2:1") -> Iterator[tuple[AcousticModel, NGSGD]]:
    layers = HiddenLayers(parse_splice_indexes(splices), "pnorm", 24, 6, batchnorm=False)
    model = initial_model(layers, (np.eye(12), np.zeros(12)), np.ones(5, np.int64), 0)
    model = insert_hidden_layer(model, layers, 0).train()
    with model.interleaved():
        yield model, NGSGD(model, lr=0.05)


def batch(num_frames: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(8, 5 + num_frames, 4, generator=generator, requires_grad=True)
    return features, torch.arange(8 * num_frames) % 5


def rows(model: AcousticModel, kept: contextlib.AbstractContextManager[object], *, checkpointed: bool = False):
    """The derivative of the features, and what each layer hands over."""
    x, labels = batch()
    seen = []
    handles = [m.watch(lambda *given: seen.append(given)) for m in model.chain() if m.kind == "affine"]
    with kept:
        y = checkpoint(model, x, use_reentrant=False) if checkpointed else model(x)
        loss = nn.functional.nll_loss(y.flatten(0, 1), labels, reduction="sum")
    with contextlib.suppress(RuntimeError):
        torch.full((200_000,), torch.nan)  # where something may have been that is still needed
    loss.backward()
    for handle in handles:
        handle.remove()
    return [x.grad, *(t.clone() for pair in seen for t in pair)]


def stacks(model: AcousticModel) -> list[Stack]:
    return [part for part in model._parts if isinstance(part, Stack)]


@compiled
def test_a_stack_gives_what_its_components_give() -> None:
    """To the byte, and hands over the same; as they do where somebody looks at one of them."""
    with in_training() as (model, _):
        (stack,) = stacks(model)
        assert [c.kind for c in stack.components] == [
            "affine", "pnorm", "normalize", "splice", "affine", "pnorm", "normalize", "affine",
        ]  # fmt: skip
        at_once = rows(model, contextlib.nullcontext())
        inside: list[torch.Tensor] = []
        handle = stack.components[3].register_forward_hook(lambda module, given, y: inside.append(y))
        one_by_one = rows(model, contextlib.nullcontext())
        assert len(inside) == 1
        handle.remove()
        assert len(at_once) == 7
        for ours, theirs in zip(at_once, one_by_one, strict=True):
            assert torch.equal(ours, theirs)


@compiled
@pytest.mark.parametrize("checkpointed", [False, True])
def test_who_keeps_tensors_for_the_way_back_may_give_copies(checkpointed: bool) -> None:
    with in_training() as (model, _):
        expected = rows(model, contextlib.nullcontext())
        kept = contextlib.nullcontext() if checkpointed else saved_tensors_hooks(torch.clone, torch.clone)
        for ours, theirs in zip(rows(model, kept, checkpointed=checkpointed), expected, strict=True):
            assert torch.equal(ours, theirs)


def test_several_frames_are_passed_one_by_one_where_they_overlap() -> None:
    with in_training() as (model, _):
        x, _ = batch(3)
        with torch.no_grad():
            expected = model(x)
        torch.testing.assert_close(model(x).detach(), expected)


def test_parameters_that_somebody_replaces_count() -> None:
    with in_training() as (model, _):
        model.load_state_dict({name: torch.zeros_like(t) for name, t in model.state_dict().items()}, assign=True)
        torch.testing.assert_close(model(batch()[0]).exp(), torch.full((8, 1, 5), 0.2))


def test_parameters_that_move_between_the_passes_are_as_they_were() -> None:
    with in_training() as (model, _):
        expected = rows(model, contextlib.nullcontext())[0]
        x, labels = batch()
        loss = nn.functional.nll_loss(model(x).flatten(0, 1), labels, reduction="sum")
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        loss.backward()
        torch.testing.assert_close(x.grad, expected)


def test_copies_are_made_in_training_too() -> None:
    with in_training() as (model, _):
        x, _ = batch()
        expected = model(x)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(other(x), expected)
