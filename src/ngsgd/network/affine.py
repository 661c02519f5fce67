"""The affine component, the one that is trained, and how its parameters lie while it is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ngsgd.kernels.rows import append_ones, room_for_rows, two_norm, two_norm_derivative_
from ngsgd.kernels.stack import AffineLayer, Norm
from ngsgd.kernels.step import side_by_side
from ngsgd.network.norms import InterleavedTwoNorm

Watcher = Callable[[Tensor, Tensor], None]


class _Watched(torch.autograd.Function):
    """z = W x + b, or its norms, without gradients of W and b: X and the derivative at z go to who watches the layer.

    W goes in for autograd to see that there is something to train, whatever x asks for.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, affine: Affine) -> Tensor:
        ctx.affine, norm, kind = affine, affine.norm, x.device.type
        rows, bias, z = x, affine.bias.detach(), None
        if torch.is_autocast_enabled(kind) and x.dtype is not torch.float64:
            dtype = torch.get_autocast_dtype(kind)
            rows, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        elif (joined := side_by_side(weight, bias)) is not None:  # the product adds the bias, too
            rows = append_ones(x.reshape(-1, x.shape[-1]))
            z = x.new_empty(*x.shape[:-1], len(bias))  # no view, which what stands above could not work on in place
            torch.mm(rows, joined.t(), out=z.view(-1, len(bias)))
        if z is None:
            z = nn.functional.linear(rows, weight, bias)
        if norm is None:
            ctx.save_for_backward(weight, rows, None, None, None)
            return z
        y, scale = two_norm(_grouped(z, norm), normalized=norm.normalized)
        ctx.save_for_backward(weight, rows, z, y, scale)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None, None]:
        affine, (dz,) = ctx.affine, grad_outputs
        weight, rows, z, y, scale = ctx.saved_tensors
        if affine.norm is not None:
            # Nobody needs z any more: no further memory has to be fetched for the derivative.
            dz = two_norm_derivative_(_grouped(z, affine.norm), y, scale, dz).view(z.shape)
        affine.seen(rows, dz)
        return (torch.matmul(dz, weight) if ctx.needs_input_grad[0] else None), None, None


def _grouped(z: Tensor, norm: Norm) -> Tensor:
    """z (..., D) as (..., k, D / k)."""
    return z.view(*z.shape[:-1], norm.k, z.shape[-1] // norm.k)


class Affine(nn.Linear):
    """y = W x + b.

    Attributes:
        output_order: where the rows of W and b lie otherwise than in the model's file (`AcousticModel.interleaved`),
            the number there of each; else None.
        norm: what else it does with its outputs, a part of the components above (likewise); else None.
    """

    kind = "affine"
    output_order: tuple[int, ...] | None = None
    norm: Norm | None = None

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__(input_dim, output_dim)
        self.input_dim, self.output_dim = input_dim, output_dim
        self._watchers: OrderedDict[int, Watcher] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_watchers": OrderedDict()}  # who watches a layer does not watch its copies

    def reset_parameters(self) -> None:
        """Zeros: whoever makes a new network draws its parameters from a generator of its own."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def spec(self) -> dict[str, Any]:
        return {"kind": self.kind, "input_dim": self.input_dim, "output_dim": self.output_dim}

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.trained() is not None:
            y: Tensor = _Watched.apply(x, self.weight, self)  # type: ignore[no-untyped-call]
            return y
        z = super().forward(x)
        if self.norm is not None:
            z = InterleavedTwoNorm.apply(_grouped(z, self.norm), self.norm.normalized)  # type: ignore[no-untyped-call]
        return z

    def watch(self, watcher: Watcher) -> RemovableHandle:
        """Has ``watcher`` be given, in each backward pass from now on, what the gradient would be made of.

        That gradient is then not made: W and b are to be updated from what is given, the rows of X, (..., D_in) or with
        a 1 after each (..., D_in + 1), and those of the derivative at y, (..., D_out). Copies of the layer are not
        watched.
        """
        handle = RemovableHandle(self._watchers)
        self._watchers[handle.id] = watcher
        return handle

    def trained(self) -> AffineLayer | None:
        """W, b and the norm, if somebody watches, who will update the former; else None."""
        # Attributes of modules take longer. Who computes them of others has none of these, and is not watched.
        weight, bias = self._parameters.get("weight"), self._parameters.get("bias")
        if weight is None or bias is None or not (self._watchers and weight.requires_grad and bias.requires_grad):
            return None
        return AffineLayer(weight, bias, self.norm)

    def seen(self, x: Tensor, dy: Tensor) -> None:
        """Gives those who watch what a backward pass has brought."""
        for watcher in self._watchers.values():
            watcher(x, dy)

    @torch.no_grad()
    def join(self, joined: bool) -> None:
        """Lays b beside W, as its last column, or lays them apart again."""
        D_out, D_in = self.weight.shape
        if joined:
            both = room_for_rows(D_out, D_in + 1, self.weight)
            weight, bias = both[:, :D_in], both[:, D_in]
        else:
            weight, bias = self.weight.new_empty(D_out, D_in), self.bias.new_empty(D_out)
        self.weight.data, self.bias.data = weight.copy_(self.weight), bias.copy_(self.bias)

    @torch.no_grad()
    def reorder(self, order: tuple[int, ...] | None) -> None:
        """Lays the outputs in another order, given by their numbers in the model's file; None for the order there."""
        there = list(range(self.output_dim)) if order is None else list(order)
        here = {number: row for row, number in enumerate(self.output_order or range(self.output_dim))}
        rows = torch.tensor([here[number] for number in there], device=self.weight.device)
        for parameter in (self.weight, self.bias):
            parameter.copy_(parameter[rows])
        self.output_order = order
