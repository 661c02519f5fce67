"""The affine component, which is the trained one, and how its parameters are stored during training."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ngsgd.network.forms import KaldiFields, OnnxGraph, to_array
from ngsgd.network.norms import InterleavedTwoNorm
from ngsgd.ops import AffineLayer, Norm, append_ones, two_norm, two_norm_backward_
from ngsgd.ops.layout import aligned_empty, fused_matrix
from ngsgd.optim.layers import LayerAdapter, register_adapter

GradientHook = Callable[[Tensor, Tensor], None]


class AffineForms:
    """The Kaldi and ONNX forms of a component y = W x + b."""

    weight: Tensor
    bias: Any  # nn.Linear declares it so

    @classmethod
    def from_kaldi(cls, fields: KaldiFields) -> Self:
        W, b = fields["LinearParams"], fields["BiasParams"]
        if W.size == 0 or len(b) != len(W):
            raise ValueError(f"parameters of {W.shape[0]} x {W.shape[1]} with a bias of {len(b)}")
        affine: Any = cls(W.shape[1], W.shape[0])  # type: ignore[call-arg]  # a mixin: its components take two sizes
        affine.load_state_dict({"weight": torch.from_numpy(np.array(W)), "bias": torch.from_numpy(np.array(b))})
        component: Self = affine
        return component

    def kaldi_fields(self) -> KaldiFields:
        return {"LinearParams": to_array(self.weight), "BiasParams": to_array(self.bias)}

    def to_onnx(self, graph: OnnxGraph, x: str) -> str:
        weight, bias = graph.constant(to_array(self.weight)), graph.constant(to_array(self.bias))
        return graph.node("Gemm", x, weight, bias, transB=1)


class Affine(AffineForms, nn.Linear):
    """y = W x + b.

    Attributes:
        output_order: for each row of W and b its number in the model's file, where they are stored in another order
            (`AcousticModel.training_layout`); else None.
        norm: the norm that the component applies to its outputs instead of the components above (likewise); else None.
    """

    kind = "affine"
    kaldi_kind: ClassVar[str] = "AffineComponentPreconditionedOnline"
    kaldi_kinds_read: ClassVar[tuple[str, ...]] = (
        "AffineComponent", "AffineComponentPreconditioned", "AffineComponentPreconditionedOnline",
    )  # fmt: skip
    output_order: tuple[int, ...] | None = None
    norm: Norm | None = None

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__(input_dim, output_dim)
        self.input_dim, self.output_dim = input_dim, output_dim
        self._gradient_hooks: OrderedDict[int, GradientHook] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_gradient_hooks": OrderedDict()}  # copies have no hooks

    def reset_parameters(self) -> None:
        """Sets the parameters to 0; new networks draw them from a generator of their own."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def spec(self) -> dict[str, Any]:
        return {"kind": self.kind, "input_dim": self.input_dim, "output_dim": self.output_dim}

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.hooked_layer() is not None:
            y: Tensor = _HookedAffine.apply(x, self.weight, self)  # type: ignore[no-untyped-call]
            return y
        z = super().forward(x)
        if self.norm is not None:
            z = InterleavedTwoNorm.apply(_groups(z, self.norm), self.norm.normalized)  # type: ignore[no-untyped-call]
        return z

    def register_gradient_hook(self, hook: GradientHook) -> RemovableHandle:
        """Calls ``hook(x, dy)`` in each backward pass, instead of computing the gradients of W and b.

        The hook's owner updates W and b from these rows: x (..., D_in), or with a 1 appended to each row
        (..., D_in + 1), and the derivatives dy (..., D_out) with respect to y. Copies of the component have no hooks.
        """
        handle = RemovableHandle(self._gradient_hooks)
        self._gradient_hooks[handle.id] = hook
        return handle

    def hooked_layer(self) -> AffineLayer | None:
        """W, b and the norm, if there is a gradient hook whose owner updates them; else None."""
        # Reads `_parameters` directly, which is faster; reparametrised components have no entry there.
        weight, bias = self._parameters.get("weight"), self._parameters.get("bias")
        if weight is None or bias is None:
            return None
        if not (self._gradient_hooks and weight.requires_grad and bias.requires_grad):
            return None
        return AffineLayer(weight, bias, self.norm)

    def on_backward(self, x: Tensor, dy: Tensor) -> None:
        """Passes the rows of a backward pass to the gradient hooks."""
        for hook in self._gradient_hooks.values():
            hook(x, dy)

    @torch.no_grad()
    def fuse_bias(self, fused: bool) -> None:
        """Stores b as one more column of W, or separately again."""
        D_out, D_in = self.weight.shape
        if fused:
            matrix = aligned_empty(D_out, D_in + 1, self.weight)
            weight, bias = matrix[:, :D_in], matrix[:, D_in]
        else:
            weight, bias = self.weight.new_empty(D_out, D_in), self.bias.new_empty(D_out)
        self.weight.data, self.bias.data = weight.copy_(self.weight), bias.copy_(self.bias)

    @torch.no_grad()
    def reorder_outputs(self, order: tuple[int, ...] | None) -> None:
        """Stores the outputs in another order, given by their numbers in the model's file; None: the file's order."""
        target = list(range(self.output_dim)) if order is None else list(order)
        row_of = {number: row for row, number in enumerate(self.output_order or range(self.output_dim))}
        rows = torch.tensor([row_of[number] for number in target], device=self.weight.device)
        for parameter in (self.weight, self.bias):
            parameter.copy_(parameter[rows])
        self.output_order = order


@register_adapter(Affine)
class AffineAdapter(LayerAdapter):
    """Adapter of `Affine`, by its gradient hook."""

    def __init__(self, module: Affine) -> None:
        super().__init__(module)
        self._module = module
        self.handles = [module.register_gradient_hook(self.collect)]

    @property
    def output_order(self) -> Sequence[int] | None:
        return self._module.output_order


class _HookedAffine(torch.autograd.Function):
    """z = W x + b, or its norms, whose backward pass calls the gradient hooks instead of computing gradients of W and
    b.

    W is an argument so that autograd sees a parameter that requires a gradient, even if x does not.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, affine: Affine) -> Tensor:
        ctx.affine, norm, kind = affine, affine.norm, x.device.type
        rows, bias, z = x, affine.bias.detach(), None
        if torch.is_autocast_enabled(kind) and x.dtype is not torch.float64:
            dtype = torch.get_autocast_dtype(kind)
            rows, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        elif (fused := fused_matrix(weight, bias)) is not None:  # the product adds the bias, too
            rows = append_ones(x.reshape(-1, x.shape[-1]))
            z = x.new_empty(*x.shape[:-1], len(bias))  # a view could not be modified in place by the layers above
            torch.mm(rows, fused.t(), out=z.view(-1, len(bias)))
        if z is None:
            z = nn.functional.linear(rows, weight, bias)
        if norm is None:
            ctx.save_for_backward(weight, rows, None, None, None)
            return z
        y, scale = two_norm(_groups(z, norm), normalized=norm.normalized)
        ctx.save_for_backward(weight, rows, z, y, scale)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None, None]:
        affine, (dz,) = ctx.affine, grad_outputs
        weight, rows, z, y, scale = ctx.saved_tensors
        if affine.norm is not None:
            # z is not needed any more; overwriting it saves memory traffic.
            dz = two_norm_backward_(_groups(z, affine.norm), y, scale, dz).view(z.shape)
        affine.on_backward(rows, dz)
        return (torch.matmul(dz, weight) if ctx.needs_input_grad[0] else None), None, None


def _groups(z: Tensor, norm: Norm) -> Tensor:
    """z (..., D) as (..., k, D / k)."""
    return z.view(*z.shape[:-1], norm.k, z.shape[-1] // norm.k)
