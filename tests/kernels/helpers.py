"""What the tests of the compiled functions share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ngsgd.kernels.native import library
from ngsgd.optim.online import FisherEstimate

WIDTHS = [1, 7, 16, 33, 80]

compiled = pytest.mark.skipif(library is None, reason="installed without a C compiler")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def an_estimate(R: int, D: int) -> FisherEstimate:
    d_t = torch.linspace(2.0, 0.1, R).double()
    e_t = torch.linspace(0.8, 0.4, R)
    W_t = e_t.sqrt()[:, None] * torch.linalg.qr(random(D, R, seed=2)).Q.T
    return FisherEstimate(W_t.contiguous(), 2.0 - e_t, d_t, 0.05)
