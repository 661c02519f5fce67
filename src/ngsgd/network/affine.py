"""The affine component, the one that is trained, and how its parameters lie while it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ngsgd.kernels.native import serves
from ngsgd.kernels.rows import append_ones, room_for_rows, side_by_side


class _JoinedAffine(torch.autograd.Function):
    """y = W x + b as one product of the rows of x with a 1 appended. No copy of b to all rows has to be made first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, rows: Tensor, joined: Tensor) -> Tensor:
        ctx.save_for_backward(weight, rows)
        return torch.mm(rows, joined.t()).view(*x.shape[:-1], len(joined))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        weight, rows = ctx.saved_tensors
        (dy,) = grad_outputs
        flat = dy.reshape(-1, len(weight))
        dx = torch.mm(flat, weight).view(*dy.shape[:-1], weight.shape[1]) if ctx.needs_input_grad[0] else None
        dW = torch.mm(flat.t(), rows[:, :-1]) if ctx.needs_input_grad[1] else None
        db = flat.sum(dim=0) if ctx.needs_input_grad[2] else None
        return dx, dW, db, None, None


class Affine(nn.Linear):
    """y = W x + b.

    Attributes:
        output_order: where the rows of W and b lie otherwise than in the model's file (`AcousticModel.interleaved`),
            the number there of each; else None.
        rows_with_ones: where W and b lie side by side (`join`), the rows of the last input with a 1 after each; else
            None.
    """

    kind = "affine"
    output_order: tuple[int, ...] | None = None
    rows_with_ones: Tensor | None = None

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__(input_dim, output_dim)
        self.input_dim, self.output_dim = input_dim, output_dim

    def reset_parameters(self) -> None:
        """Zeros: whoever makes a new network draws its parameters from a generator of its own."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def spec(self) -> dict[str, Any]:
        return {"kind": self.kind, "input_dim": self.input_dim, "output_dim": self.output_dim}

    def forward(self, x: Tensor) -> Tensor:
        joined = side_by_side(self.weight, self.bias)
        if joined is None or not serves(x) or torch.is_autocast_enabled("cpu"):
            self.rows_with_ones = None
            return super().forward(x)
        self.rows_with_ones = append_ones(x.detach().view(-1, self.input_dim))
        y: Tensor = _JoinedAffine.apply(x, self.weight, self.bias, self.rows_with_ones, joined)  # type: ignore[no-untyped-call]
        return y

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
        self.rows_with_ones = None

    @torch.no_grad()
    def reorder(self, order: tuple[int, ...] | None) -> None:
        """Lays the outputs in another order, given by their numbers in the model's file; None for the order there."""
        there = list(range(self.output_dim)) if order is None else list(order)
        here = {number: row for row, number in enumerate(self.output_order or range(self.output_dim))}
        rows = torch.tensor([here[number] for number in there], device=self.weight.device)
        for parameter in (self.weight, self.bias):
            parameter.copy_(parameter[rows])
        self.output_order = order
