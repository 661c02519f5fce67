"""NG-SGD as a ``torch.optim.Optimizer``: what sees the rows of affine layers, and the update made from them.

Source: Povey, Zhang, Khudanpur, arXiv:1410.7455; the update is that of Kaldi's
``AffineComponentPreconditionedOnline::Update`` (``nnet2/nnet-component.cc``).

For an affine layer y = W x + b the gradient of the summed objective over N rows is ``Y^T X``, row i of X
(N x D_in + 1) being the layer's input with a 1 appended and row i of Y (N x D_out) the derivative of the objective
at its output. Both are preconditioned, row by row, and

    W,b <- W,b + l gamma_x gamma_y s Y^^T X^

with l the learning rate and s the limit that max-change sets.
"""

from __future__ import annotations

import functools
import itertools
import math
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from ngsgd.kernels.native import in_reach
from ngsgd.kernels.rows import append_ones
from ngsgd.kernels.step import Preconditioned, Trained, descend, side_by_side
from ngsgd.optim.online import OnlineNaturalGradient, renew
from ngsgd.optim.preconditioner import Preconditioner, at_full_precision, scales
from ngsgd.optim.simple import SimpleNaturalGradient

Method = Literal["online", "simple", "none"]

LIMITS_KEPT = 16  # sizes of minibatches; a job has two


class Identity:
    """No preconditioning: X^ = X, gamma = 1."""

    def apply(self, x: Tensor) -> Preconditioned:
        return Preconditioned(x)


class _Capture(torch.autograd.Function):
    """The identity, which on the way back keeps the derivative that passes through it.

    ``anchor`` is a leaf that requires a gradient: through it the derivative reaches a first layer, too, whose input
    and (see `_AffineLayer`) weights ask for none.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, anchor: Tensor, x: Tensor, layer: _AffineLayer) -> Tensor:
        ctx.x, ctx.layer = x, layer
        ctx.mark_dirty(y)  # no view of it, which what stands above could not work on in place
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None, None, None]:
        (dy,) = grad_outputs
        ctx.layer.keep(ctx.x, dy)
        return (dy if ctx.needs_input_grad[0] else None), None, None, None


class _AffineLayer:
    """One ``nn.Linear``: the rows of X and Y that passed since the last step, and its two preconditioners.

    Autograd is not to form ``Y^T X``: the update is made from ``Y^^T X^`` and would throw it away. A layer that has a
    method ``watch``, as `ngsgd.network.affine.Affine`, sees to that and hands the rows over; any other has hooks, and
    while it computes its output its parameters do not require a gradient.
    """

    def __init__(self, name: str, module: nn.Linear, x_side: Preconditioner, y_side: Preconditioner) -> None:
        self.name = name
        self.weight: Tensor = module.weight
        self.bias: Tensor | None = module.bias
        self.x_side, self.y_side = x_side, y_side
        self.num_steps = 0
        self.num_limited: Tensor | int = 0  # a tensor, so that a GPU is not waited for
        self._parameters = [p for p in (module.weight, module.bias) if p is not None]
        self._asked = False  # whether all of them required a gradient before the forward pass under way
        self._module = weakref.ref(module)
        self._anchor = module.weight.new_zeros(()).requires_grad_()
        self._rows: list[tuple[Tensor, Tensor]] = []
        watch = getattr(module, "watch", None)
        self.handles = (
            [
                module.register_forward_pre_hook(self._before_forward),
                module.register_forward_hook(self._after_forward, with_kwargs=True, always_call=True),
            ]
            if watch is None
            else [watch(self.keep)]
        )

    def _before_forward(self, module: nn.Module, args: Any) -> None:
        if module is self._module():  # and not a copy of it, which has the hooks too
            self._asked = all(p.requires_grad for p in self._parameters)
            if self._asked:
                for p in self._parameters:
                    p.requires_grad_(False)

    def _after_forward(self, module: nn.Module, args: Any, kwargs: Any, y: Tensor | None) -> Tensor | None:
        if module is not self._module():
            return None
        if self._asked:
            for p in self._parameters:
                p.requires_grad_(True)
        if y is None or not torch.is_grad_enabled() or not self._asked:
            return None
        x = args[0] if args else kwargs["input"]
        captured: Tensor = _Capture.apply(y, self._anchor, x.detach(), self)  # type: ignore[no-untyped-call]
        return captured

    def keep(self, x: Tensor, dy: Tensor) -> None:
        self._rows.append((_matrix(x), _matrix(dy)))

    def forget(self) -> None:
        self._rows.clear()

    def take(self, *, with_ones: bool) -> tuple[Tensor, Tensor] | None:
        """X (N, D_in) or (N, D_in + 1) and Y (N, D_out) of all that passed, which are then forgotten.

        Args:
            with_ones: whether 1 is appended to the rows of X where there is a bias. It may be there anyway.
        """
        if not self._rows:
            return None
        passed, self._rows = self._rows, []
        dtype, D_in = self.weight.dtype, self.weight.shape[1]
        if any(x.dtype is not dtype or y.dtype is not dtype for x, y in passed):
            # Under autocast the rows have less precision than the parameters.
            passed = [(x.to(dtype), y.to(dtype)) for x, y in passed]
        if self.bias is not None and (with_ones or any(x.shape[1] > D_in for x, _ in passed)):
            passed = [(x if x.shape[1] > D_in else append_ones(x), y) for x, y in passed]
        if len(passed) == 1:
            return passed[0]
        xs, ys = zip(*passed, strict=True)
        return torch.cat(xs), torch.cat(ys)

    def count(self, limited: Tensor | int) -> None:
        """Counts a step, and whether max-change limited it."""
        self.num_steps += 1
        self.num_limited = self.num_limited + limited

    def descend(self, x: Preconditioned, y: Preconditioned, step: float | Tensor) -> None:
        """W,b <- W,b - step Y^^T X^; a loss is minimised, so the rows of Y are *minus* the objective's derivative.

        Args:
            x: X^, (N, D_in + 1), or (N, D_in) where 1 is to be taken to follow.
            y: Y^, (N, D_out).
            step: by which the gradient is multiplied; a 0-d tensor where reading it would be waiting for a GPU.
        """
        X_hat = x.formed()
        if isinstance(step, Tensor):
            X_hat, step = X_hat * step, 1.0
        (N, D_out), D_in = y.X.shape, X_hat.shape[1]
        if y.H is not None and y.W is not None and N * D_out > D_in * (N + D_out):
            # Y^^T X^ = Y^T X^ - W^T (H^T X^), where that is less work than to form Y^.
            self._subtract(y.X, X_hat, step)
            self._subtract(y.W, torch.mm(y.H.t(), X_hat), -step)
        else:
            self._subtract(y.formed(), X_hat, step)

    def _subtract(self, Y: Tensor, X: Tensor, step: float) -> None:
        D_in = self.weight.shape[1]
        has_ones = X.shape[1] > D_in
        if self.bias is not None and has_ones and (joined := side_by_side(self.weight, self.bias)) is not None:
            joined.addmm_(Y.t(), X, alpha=-step)
            return
        self.weight.addmm_(Y.t(), X[:, :D_in], alpha=-step)
        if self.bias is None:
            return
        if has_ones:
            self.bias.addmv_(Y.t(), X[:, D_in], alpha=-step)
        else:
            self.bias.sub_(Y.sum(dim=0), alpha=step)


def _matrix(rows: Tensor) -> Tensor:
    return rows if rows.dim() == 2 else rows.reshape(-1, rows.shape[-1])


class NGSGD(torch.optim.Optimizer):
    """Natural-gradient SGD for any model: its affine layers (``nn.Linear``) are preconditioned, the rest gets SGD.

    ::

        optimizer = NGSGD(model, lr=0.01)
        loss = nn.functional.nll_loss(model(x), labels, reduction="sum")
        optimizer.zero_grad(); loss.backward(); optimizer.step()

    The loss is the *sum* over the rows of the minibatch and learning rates are per sample: with a mean, multiply
    ``lr`` by the number of rows. An affine layer that is applied at several positions of an example, or several
    times before a step, has each application's rows in its statistics.

    Where not to use it: under DistributedDataParallel, gradient clipping or anything else that works on the ``.grad``
    of affine layers, which is never formed; with a second one that has the same layers; for derivatives of derivatives.
    Parameters that a module uses without calling the ``nn.Linear`` that
    owns them (as ``nn.MultiheadAttention`` does) get plain SGD.

    The rows of all affine layers, and the preconditioned ones, are in memory at once. A layer whose outputs do not lie
    in their order may say so by an attribute ``output_order``, the number of each: the first estimate depends on it.

    The statistics are not part of ``state_dict()``: in the method that this serves, a job starts them afresh.

    Args:
        model: the module to train; parameters that do not require a gradient when this is called stay as they are.
        lr: learning rate per sample, for all parameters; ``param_groups[0]["lr"]`` may be changed between steps.
        preconditioner: "online" (the default), "simple", or "none", which is plain SGD.
        alpha: smoothing of the Fisher estimates with the identity.
        rank_in: rank of the online estimate of an affine layer's inputs.
        rank_out: rank of the online estimate of the derivatives at its output.
        num_samples_history: rows over which the online estimate forgets.
        update_period: minibatches from one update of the online estimate to the next.
        max_change_per_sample: m; a layer's step is scaled by ``min(1, m N / change)``, with the bound
            ``change = lr gamma_x gamma_y sum_i |x^_i| |y^_i|`` on how far it goes. 0 turns it off. By default
            0.075, and 0 for plain SGD.

    Raises:
        ValueError: an argument out of its range, or a model with nothing to train.
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

        def make(rank: int, order: tuple[int, ...] | None = None) -> Preconditioner:
            if preconditioner == "online":
                return OnlineNaturalGradient(rank, alpha, num_samples_history, update_period, order)
            if preconditioner == "simple":
                return SimpleNaturalGradient(alpha)
            if preconditioner == "none":
                return Identity()
            raise ValueError(f"preconditioner must be 'online', 'simple' or 'none', got {preconditioner!r}")

        self.max_change_per_sample = max_change_per_sample
        self._plain = preconditioner == "none" and max_change_per_sample == 0.0
        self._limits: dict[tuple[tuple[int, ...], torch.device, torch.dtype], Tensor] = {}
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError("the model has no parameter that requires a gradient")
        super().__init__(parameters, {"lr": lr})
        self._layers = [
            _AffineLayer(name, module, make(rank_in), make(rank_out, getattr(module, "output_order", None)))
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
            and {"weight", "bias"} <= module._parameters.keys()  # not so where they are computed from others
            and all(p.requires_grad for p in module.parameters())
        ]
        handles = [handle for layer in self._layers for handle in layer.handles]
        weakref.finalize(self, _remove, handles)
        self._online = [
            side
            for layer in self._layers
            for side in (layer.x_side, layer.y_side)
            if isinstance(side, OnlineNaturalGradient)
        ]

    # torch wraps this method so that its first call imports torch._dynamo, which takes longer than starting a job
    # may; nothing here is compiled, so the method underneath serves.
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        torch.optim.Optimizer.add_param_group.__wrapped__(self, param_group)  # type: ignore[attr-defined]

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """What torch puts around each step, for hooks and its profiler, takes time: it is left out without these."""
        watched = torch.optim.Optimizer.profile_hook_step(func)

        @functools.wraps(func)
        def step(self: NGSGD, *args: Any, **kwargs: Any) -> Any:
            hooks = self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks
            everywhere = _global_optimizer_pre_hooks, _global_optimizer_post_hooks
            alone = not (any(hooks) or any(everywhere) or torch._C._autograd._profiler_enabled())
            return (func if alone else watched)(self, *args, **kwargs)

        return step

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients, and the rows of affine layers, of all backward passes since the last step."""
        for layer in self._layers:
            layer.forget()
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
        """One update of all parameters from the backward passes since the last step.

        Raises:
            FloatingPointError: an estimate was to be renewed from values that are not finite; parameters may have been
                updated from them. Steps that renew none, and plain SGD, do not look.
            MemoryError: there is none for the renewal of an estimate; parameters have been updated.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        lr = float(self.param_groups[0]["lr"])
        taken = [(layer, rows) for layer in self._layers if (rows := layer.take(with_ones=not self._plain)) is not None]
        with at_full_precision(self.param_groups[0]["params"][0].device):
            self._descend(taken, lr)
            renew(self._online)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad, alpha=-lr)
        return loss

    def _descend(self, taken: list[tuple[_AffineLayer, tuple[Tensor, Tensor]]], lr: float) -> None:
        """The step of all affine layers. What is a number for each is computed where the data lies."""
        try:
            applied = [(layer, layer.x_side.apply(X), layer.y_side.apply(Y)) for layer, (X, Y) in taken]
        except FloatingPointError:
            for side in self._online:
                side.take_due()  # which would be of this minibatch
            raise
        trained = [Trained(layer.weight, layer.bias, x, y) for layer, x, y in applied]
        places = defaultdict(list)
        for these, shortened in zip(applied, descend(trained, lr, self.max_change_per_sample), strict=True):
            weight = these[0].weight
            if shortened is None:
                places[weight.device, weight.dtype].append(these)
            else:
                these[0].count(shortened)
        for group in places.values():
            steps = itertools.repeat((lr, 0), len(group)) if self._plain else self._steps(group, lr)
            for (layer, x, y), (step, limited) in zip(group, steps, strict=True):
                layer.descend(x, y, step)
                layer.count(limited)

    def _steps(
        self, applied: list[tuple[_AffineLayer, Preconditioned, Preconditioned]], lr: float
    ) -> Iterable[tuple[float | Tensor, int | Tensor]]:
        """lr gamma_x gamma_y s of each layer, and whether max-change limited it."""
        traces = torch.cat([traces for _, x, y in applied for traces in (x.traces, y.traces)]).view(-1, 2, 2)
        step = scales(*traces.unbind(2)).prod(dim=1).mul_(lr)
        limited: Iterable[Any] = itertools.repeat(0, len(applied))
        if self.max_change_per_sample > 0.0:
            change = step * torch.stack([torch.dot(x.lengths, y.lengths) for _, x, y in applied])
            limit = self._limit(tuple(len(x.lengths) for _, x, _ in applied), step)
            step = step * (limit / change).clamp_(max=1.0)
            limited = change > limit
        if in_reach(step):  # numbers are faster than tensors there
            return zip(step.tolist(), limited.tolist() if isinstance(limited, Tensor) else limited, strict=True)
        return zip(step, limited, strict=True)

    def _limit(self, num_rows: tuple[int, ...], like: Tensor) -> Tensor:
        """m N of each layer; kept, since to send numbers to a GPU is to wait for it."""
        key = (num_rows, like.device, like.dtype)
        if key not in self._limits:
            if len(self._limits) > LIMITS_KEPT:
                self._limits.clear()
            self._limits[key] = like.new_tensor([self.max_change_per_sample * N for N in num_rows])
        return self._limits[key]

    def max_change_share(self) -> dict[str, float]:
        """For each affine layer, by its name in the model, the share of its steps so far that max-change limited."""
        return {layer.name: int(layer.num_limited) / max(1, layer.num_steps) for layer in self._layers}


def _remove(handles: Iterable[torch.utils.hooks.RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
