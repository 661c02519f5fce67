"""Small models of affine layers of each kind, and a step of their training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ngsgd.network.affine import Affine


class Fused(Affine):
    """An affine component with its bias fused into the weights, in float32."""

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
    if linear is not Fused:
        return model.to(dtype)
    for layer in layers:
        layer.fuse_bias(True)
    return model


# nn.Linear has an adapter by hooks, Affine one by its gradient hook.
both_kinds = pytest.mark.parametrize("linear", [nn.Linear, Affine])


all_kinds = pytest.mark.parametrize("linear", [nn.Linear, Affine, Fused])


def small_batch(n: int = 11, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, 5, dtype=dtype, generator=generator), torch.randint(3, (n,), generator=generator)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> float:
    loss = nn.functional.cross_entropy(model(x), y, reduction="sum")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())
