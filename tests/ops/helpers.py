"""Random inputs of the operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ngsgd.ops import FisherState, cpu

WIDTHS = [1, 7, 16, 33, 80]

needs_cpu_backend = pytest.mark.skipif(not cpu.is_available, reason="installed without a C compiler")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_fisher(R: int, D: int) -> FisherState:
    """An estimate of rank R in D dimensions, in float32."""
    d_t = torch.linspace(2.0, 0.1, R).double()
    e_t = torch.linspace(0.8, 0.4, R)
    W_t = e_t.sqrt()[:, None] * torch.linalg.qr(random(D, R, seed=2)).Q.T
    return FisherState(W_t.contiguous(), 2.0 - e_t, d_t, 0.05)


def in_double(state: FisherState) -> FisherState:
    return state._replace(W_t=state.W_t.double(), two_minus_e=state.two_minus_e.double())
