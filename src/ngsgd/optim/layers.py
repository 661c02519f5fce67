"""Layer adapters: how the optimiser sees the layers of a model that it preconditions.

An adapter collects the rows of a layer's inputs and of the derivatives with respect to its outputs in each backward
pass, and says which parameters a step changes. Adapters are registered for a type of module (`register_adapter`) and
found by the module's class or the nearest of its base classes (`adapter_for`). `nn.Linear` has its adapter here; a
module of this project registers its own where it is defined.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ngsgd import registry
from ngsgd.ops import AffineLayer, append_ones


class LayerAdapter:
    """Connects a layer y = W x + b with the optimiser.

    A subclass registers itself with the module so that `collect` receives the rows of each backward pass, and so that
    autograd does not form the gradient Y^T X: the update is made from Y^^T X^ instead.

    Args:
        module: the layer, with parameters ``weight`` and ``bias`` (which may be None).

    Attributes:
        weight: W (D_out, D_in).
        bias: b (D_out,), or None.
        handles: their removal disconnects the adapter from the module.
    """

    def __init__(self, module: nn.Module) -> None:
        parameters = module._parameters
        weight = parameters["weight"]
        assert weight is not None
        self.weight: Tensor = weight
        self.bias: Tensor | None = parameters["bias"]
        self.handles: list[RemovableHandle] = []
        self._rows: list[tuple[Tensor, Tensor]] = []

    @staticmethod
    def accepts(module: nn.Module) -> bool:
        """Whether the module's own parameters can be updated directly, and all require a gradient.

        Parameters that are computed from others (``torch.nn.utils.parametrize``) have no entry in ``_parameters``.
        """
        own = module._parameters
        if not {"weight", "bias"} <= own.keys() or own["weight"] is None:
            return False
        return all(p.requires_grad for p in module.parameters())

    @property
    def output_order(self) -> Sequence[int] | None:
        """For each output its number in the model's own order, where the outputs are stored in another; else None."""
        return None

    def layer(self) -> AffineLayer:
        """The parameters as `ngsgd.ops.preconditioned_step` updates them."""
        return AffineLayer(self.weight, self.bias)

    def collect(self, x: Tensor, dy: Tensor) -> None:
        """Stores the rows of a backward pass.

        Args:
            x: inputs (..., D_in), or with a 1 appended to each row (..., D_in + 1).
            dy: derivatives of the loss with respect to the outputs (..., D_out).
        """
        self._rows.append((_as_matrix(x), _as_matrix(dy)))

    def clear(self) -> None:
        """Discards the stored rows."""
        self._rows.clear()

    def pop(self, *, with_ones: bool) -> tuple[Tensor, Tensor] | None:
        """Returns X (N, D_in) or (N, D_in + 1) and Y (N, D_out) of all stored rows and discards them; None if none.

        Args:
            with_ones: whether to append 1 to the rows of X if there is a bias. It may have been appended anyway.
        """
        if not self._rows:
            return None
        stored, self._rows = self._rows, []
        dtype, D_in = self.weight.dtype, self.weight.shape[1]
        if any(x.dtype is not dtype or y.dtype is not dtype for x, y in stored):
            # Under autocast the rows have lower precision than the parameters.
            stored = [(x.to(dtype), y.to(dtype)) for x, y in stored]
        if self.bias is not None and (with_ones or any(x.shape[1] > D_in for x, _ in stored)):
            stored = [(x if x.shape[1] > D_in else append_ones(x), y) for x, y in stored]
        if len(stored) == 1:
            return stored[0]
        xs, ys = zip(*stored, strict=True)
        return torch.cat(xs), torch.cat(ys)


def _as_matrix(rows: Tensor) -> Tensor:
    return rows if rows.dim() == 2 else rows.reshape(-1, rows.shape[-1])


Adapter = TypeVar("Adapter", bound=type[LayerAdapter])

_adapters: dict[type[nn.Module], type[LayerAdapter]] = {}


def register_adapter(module_type: type[nn.Module]) -> Callable[[Adapter], Adapter]:
    """Registers the decorated adapter for modules of a type and of its subclasses."""

    def register(adapter: Adapter) -> Adapter:
        registry.add(_adapters, module_type, adapter)
        return adapter

    return register


def adapter_for(module: nn.Module) -> LayerAdapter | None:
    """A new adapter of a module; None if it has none, so that its parameters get plain SGD."""
    for base in type(module).__mro__:
        if base in _adapters:
            adapter = _adapters[base]
            return adapter(module) if adapter.accepts(module) else None
    return None


@register_adapter(nn.Linear)
class LinearAdapter(LayerAdapter):
    """Adapter of ``nn.Linear``, by hooks.

    While the layer computes its output its parameters do not require a gradient, so that autograd does not form it.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._parameters = [p for p in (self.weight, self.bias) if p is not None]
        self._all_require_grad = False  # before the forward pass in progress
        self._module = weakref.ref(module)
        self._anchor = self.weight.new_zeros(()).requires_grad_()
        self.handles = [
            module.register_forward_pre_hook(self._before_forward),
            module.register_forward_hook(self._after_forward, with_kwargs=True, always_call=True),
        ]

    def _before_forward(self, module: nn.Module, args: Any) -> None:
        if module is self._module():  # a copy of the module has the hooks, too
            self._all_require_grad = all(p.requires_grad for p in self._parameters)
            if self._all_require_grad:
                for p in self._parameters:
                    p.requires_grad_(False)

    def _after_forward(self, module: nn.Module, args: Any, kwargs: Any, y: Tensor | None) -> Tensor | None:
        if module is not self._module():
            return None
        if self._all_require_grad:
            for p in self._parameters:
                p.requires_grad_(True)
        if y is None or not torch.is_grad_enabled() or not self._all_require_grad:
            return None
        x = args[0] if args else kwargs["input"]
        captured: Tensor = _Capture.apply(y, self._anchor, x.detach(), self)  # type: ignore[no-untyped-call]
        return captured


class _Capture(torch.autograd.Function):
    """The identity, whose backward pass gives the derivative that passes through it to the adapter.

    ``anchor`` is a leaf that requires a gradient: through it the derivative reaches the first layer of a model, too,
    where neither the input nor (see `LinearAdapter`) the parameters require one.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, anchor: Tensor, x: Tensor, adapter: LinearAdapter) -> Tensor:
        ctx.x, ctx.adapter = x, adapter
        ctx.mark_dirty(y)  # a view of y could not be modified in place by the layers above
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None, None, None]:
        (dy,) = grad_outputs
        ctx.adapter.collect(ctx.x, dy)
        return (dy if ctx.needs_input_grad[0] else None), None, None, None
