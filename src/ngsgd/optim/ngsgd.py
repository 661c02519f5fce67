"""NG-SGD as a ``torch.optim.Optimizer``.

Source: Povey, Zhang, Khudanpur, arXiv:1410.7455; the update is that of Kaldi's
``AffineComponentPreconditionedOnline::Update`` (``nnet2/nnet-component.cc``).

For an affine layer y = W x + b the gradient of the loss, summed over N rows, is ``Y^T X``: row i of X (N x D_in + 1) is
the layer's input with a 1 appended, and row i of Y (N x D_out) the derivative of the loss with respect to its output.
The rows of both are preconditioned, and

    W,b <- W,b - s Y^^T X^,    s = lr gamma_x gamma_y min(1, m N / change)

where max-change m limits how far a step moves the layer.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from ngsgd.ops import preconditioned_step
from ngsgd.optim.layers import LayerAdapter, adapter_for
from ngsgd.optim.online import OnlineNaturalGradient
from ngsgd.optim.preconditioner import Identity, Preconditioner, at_full_precision
from ngsgd.optim.simple import SimpleNaturalGradient

Method = Literal["online", "simple", "none"]


@dataclass
class _PreconditionedLayer:
    """A layer with the preconditioners of its inputs and of its output derivatives, and how often its steps were
    limited.
    """

    name: str
    adapter: LayerAdapter
    x_side: Preconditioner
    y_side: Preconditioner
    num_steps: int = 0
    num_limited: Tensor | int = 0  # a tensor on a GPU, which is then not waited for


class NGSGD(torch.optim.Optimizer):
    """Natural-gradient SGD for any model: its affine layers (``nn.Linear``) are preconditioned, the rest gets SGD.

    ::

        optimizer = NGSGD(model, lr=0.01)
        loss = nn.functional.nll_loss(model(x), labels, reduction="sum")
        optimizer.zero_grad(); loss.backward(); optimizer.step()

    The loss is the *sum* over the rows of the minibatch, and learning rates are per sample: with a mean, multiply
    ``lr`` by the number of rows. If an affine layer is applied at several positions of an example, or several times
    before a step, the rows of each application count in its statistics.

    Do not use it with DistributedDataParallel, gradient clipping or anything else that works on the ``.grad`` of affine
    layers, which is never formed; with a second NGSGD for the same layers; or for second derivatives. Parameters that a
    module uses without calling the ``nn.Linear`` that owns them (as ``nn.MultiheadAttention`` does) get plain SGD. For
    other kinds of layers register an adapter (`ngsgd.optim.layers.register_adapter`).

    The rows of all affine layers, and the preconditioned rows, are in memory at the same time. The statistics are not
    part of ``state_dict()``: in the training procedure of the paper each job starts them from scratch.

    Args:
        model: the module to train; parameters that do not require a gradient at this call stay as they are.
        lr: learning rate per sample, for all parameters; ``param_groups[0]["lr"]`` may be changed between steps.
        preconditioner: "online" (the default), "simple", or "none", which is plain SGD.
        alpha: smoothing of the Fisher estimates with the identity.
        rank_in: rank of the online estimate of an affine layer's inputs.
        rank_out: rank of the online estimate of the derivatives with respect to its outputs.
        num_samples_history: rows after which the online estimate has largely forgotten earlier ones.
        update_period: minibatches from one update of the online estimate to the next.
        max_change_per_sample: m; a layer's step is scaled by ``min(1, m N / change)``, where ``change = lr gamma_x
            gamma_y sum_i |x^_i| |y^_i|`` bounds how far it moves the layer. 0 turns the limit off. The default is
            0.075, and 0 for plain SGD.

    Raises:
        ValueError: an argument is out of range, or the model has nothing to train.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        *,
        preconditioner: Method = "online",
        alpha: float = 4.0,
        rank_in: int = 20,
        rank_out: int = 80,
        num_samples_history: float = 2000.0,
        update_period: int = 4,
        max_change_per_sample: float | None = None,
    ) -> None:
        if not (math.isfinite(lr) and lr >= 0.0):
            raise ValueError(f"lr must be a finite number, at least 0, got {lr}")
        if max_change_per_sample is None:
            max_change_per_sample = 0.0 if preconditioner == "none" else 0.075
        if not max_change_per_sample >= 0.0:
            raise ValueError(f"max_change_per_sample must be at least 0, got {max_change_per_sample}")

        def make(rank: int) -> Preconditioner:
            if preconditioner == "online":
                return OnlineNaturalGradient(rank, alpha, num_samples_history, update_period)
            if preconditioner == "simple":
                return SimpleNaturalGradient(alpha)
            if preconditioner == "none":
                return Identity()
            raise ValueError(f"preconditioner must be 'online', 'simple' or 'none', got {preconditioner!r}")

        make(rank_in)  # so that a wrong argument is an error for a model without affine layers, too
        self.max_change_per_sample = max_change_per_sample
        self._is_plain_sgd = preconditioner == "none" and max_change_per_sample == 0.0
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError("the model has no parameter that requires a gradient")
        super().__init__(parameters, {"lr": lr})
        self._layers = [
            _PreconditionedLayer(name, adapter, make(rank_in), make(rank_out))
            for name, module in model.named_modules()
            if (adapter := adapter_for(module)) is not None
        ]
        weakref.finalize(self, _remove, [handle for layer in self._layers for handle in layer.adapter.handles])

    # torch wraps this method so that its first call imports torch._dynamo, which takes longer than a job's start may.
    # Nothing here is compiled by torch, so that the wrapped method is enough.
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        torch.optim.Optimizer.add_param_group.__wrapped__(self, param_group)  # type: ignore[attr-defined]

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """Leaves out torch's wrapper of each step, which takes time, where neither hooks nor the profiler need it."""
        wrapped = torch.optim.Optimizer.profile_hook_step(func)

        @functools.wraps(func)
        def step(self: NGSGD, *args: Any, **kwargs: Any) -> Any:
            hooks = self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks
            global_hooks = _global_optimizer_pre_hooks, _global_optimizer_post_hooks
            unhooked = not (any(hooks) or any(global_hooks) or torch._C._autograd._profiler_enabled())
            return (func if unhooked else wrapped)(self, *args, **kwargs)

        return step

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Discards the gradients, and the rows of affine layers, of all backward passes since the last step."""
        for layer in self._layers:
            layer.adapter.clear()
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none or p.grad is None:
                    p.grad = None
                else:
                    p.grad.zero_()

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates all parameters from the backward passes since the last step.

        Raises:
            FloatingPointError: an estimate was to be updated from values that are not finite; parameters may have been
                updated from them. Steps that update no estimate, and plain SGD, do not check.
            MemoryError: there is no memory for the update of an estimate; parameters have been updated.
            RuntimeError: the outputs of a layer have been reordered since the first step; see
                `AcousticModel.training_layout`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        lr = float(self.param_groups[0]["lr"])
        with at_full_precision(self.param_groups[0]["params"][0].device):
            self._step_layers(lr)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad, alpha=-lr)
        return loss

    def _step_layers(self, lr: float) -> None:
        with_ones = not self._is_plain_sgd
        popped = [
            (layer, rows) for layer in self._layers if (rows := layer.adapter.pop(with_ones=with_ones)) is not None
        ]
        if not popped:
            return
        layers, inputs, derivatives = [], [], []
        for layer, (X, Y) in popped:
            layers.append(layer.adapter.layer())
            inputs.append(layer.x_side.prepare(X))
            derivatives.append(layer.y_side.prepare(Y, layer.adapter.output_order))
        results = preconditioned_step(layers, inputs, derivatives, lr, self.max_change_per_sample)
        for (layer, _), result in zip(popped, results, strict=True):
            layer.num_steps += 1
            layer.num_limited = layer.num_limited + result.limited
            for side, updated in ((layer.x_side, result.x_fisher), (layer.y_side, result.y_fisher)):
                if updated is not None:
                    side.record(updated)

    def max_change_share(self) -> dict[str, float]:
        """For each affine layer, by its name in the model, the share of its steps so far that max-change limited."""
        return {layer.name: int(layer.num_limited) / max(1, layer.num_steps) for layer in self._layers}


def _remove(handles: Iterable[torch.utils.hooks.RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
