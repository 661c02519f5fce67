"""What is made of R x R matrices when an estimate of ``ngsgd.optim.online`` is renewed, on the host.

Compiled for what comes from floats; PyTorch's operators for whatever else. All but the outcome is in double precision.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from ngsgd.kernels.native import library, serves

EPSILON = 1.0e-10  # smallest value of rho_t and d_t
DELTA = 5.0e-4  # smallest value of rho_t and d_t relative to the largest eigenvalue
CONDITION_THRESHOLD = 1.0e6  # beyond this ratio of eigenvalues R_t is checked for orthonormality


class Given(NamedTuple):
    """What the renewal of an estimate starts from, beside matrices.

    Attributes:
        d_t: (R,), on the host, of doubles.
        rho_t: likewise.
        alpha: smoothing with the identity.
        eta: forgetting factor, between 0 and 1.
        N: number of rows of the minibatch.
        D: their dimension.
    """

    d_t: Tensor
    rho_t: float
    alpha: float
    eta: float
    N: int
    D: int


class Solution(NamedTuple):
    """What becomes of an estimate: W_{t+1} = A_t (J_t + B_t W_t).

    Attributes:
        A_t: (R, R).
        B_t: (R,), the diagonal of a matrix.
        shrunk: (R,), 2 - e_{t+1}.
        d_1: (R,), d_{t+1}, of doubles.
        rho_1: rho_{t+1}.
        doubtful: whether rounding may have cost R_{t+1} the orthonormality of its rows.
    """

    A_t: Tensor
    B_t: Tensor
    shrunk: Tensor
    d_1: Tensor
    rho_1: float
    doubtful: bool


def shares(d_t: Tensor, rho_t: float, alpha: float, D: int) -> Tensor:
    """The diagonal of E_t (R,): the squared lengths of the rows of W_t."""
    beta_t = rho_t * (1.0 + alpha) + alpha / D * d_t.sum()
    return 1.0 / (beta_t / d_t + 1.0)


def z_of(K: Tensor, L: Tensor, given: Given) -> tuple[Tensor, float]:
    """Z_t = E^{-1/2} (l L D' + l D' L + l^2 K) E^{-1/2} + D'^2 with l = eta / N and D' = (1 - eta) (D_t + rho_t I).

    Args:
        K: (R, R).
        L: (R, R).
        given: what there is beside these.

    Returns:
        Z_t (R, R), of doubles, divided by its trace where that is above 1, and the trace.
    """
    (d_t, rho_t, alpha, eta, N, D), R = given, len(K)
    if serves(K, L):
        room, Z = d_t.new_empty(R), d_t.new_empty(R, R)
        trace: float = library.fisher_z(
            K.data_ptr(), L.data_ptr(), d_t.data_ptr(), rho_t, alpha, eta, N, D, room.data_ptr(), Z.data_ptr(), R
        )
        return Z, trace
    learn, kept = eta / N, (1.0 - eta) * (d_t + rho_t)
    inv_sqrt_e = shares(d_t, rho_t, alpha, D).rsqrt()
    Z = (kept[:, None] + kept) * L.double() + learn * K.double()
    Z *= (learn * inv_sqrt_e)[:, None] * inv_sqrt_e
    Z.diagonal().add_(kept.square())
    trace = float(Z.numpy().trace())
    return Z / max(1.0, trace), trace


def solution_of(values: Tensor, U: Tensor, trace: float, tr_XX: float, given: Given, like: Tensor) -> Solution:
    """The estimate that follows from the eigenvalues of Z_t.

    Args:
        values: (R,), rising, of doubles.
        U: (R, R), an eigenvector in each column.
        trace: of Z_t, as `z_of` gives it.
        tr_XX: tr(X X^T).
        given: what there is beside these.
        like: says of which type the outcome is to be.
    """
    (d_t, rho_t, alpha, eta, N, D), R = given, len(values)
    made = torch.empty(R, R, dtype=like.dtype)
    rows = U.mT.contiguous()
    if serves(made):
        B_t, shrunk, d_1, room, doubtful = made.new_empty(R), made.new_empty(R), *d_t.new_empty(2, R), ctypes.c_int()
        rho_1: float = library.fisher_solution(
            values.data_ptr(), rows.data_ptr(), trace, tr_XX, d_t.data_ptr(), rho_t, alpha, eta, N, D,
            EPSILON, DELTA, CONDITION_THRESHOLD, room.data_ptr(),
            made.data_ptr(), B_t.data_ptr(), shrunk.data_ptr(), d_1.data_ptr(), doubtful, R,
        )  # fmt: skip
        return Solution(made, B_t, shrunk, d_1, rho_1, bool(doubtful))
    learn, keep = eta / N, 1.0 - eta
    c_t, c_floor = values.flip(0) * max(1.0, trace), (rho_t * keep) ** 2  # from the largest
    sqrt_c = c_t.clamp(min=c_floor).sqrt()
    roots = sqrt_c.numpy()
    most, least = roots[0], roots[-1]
    rho_1 = float((learn * tr_XX + keep * (D * rho_t + d_t.numpy().sum()) - roots.sum()) / (D - R))
    floor = max(EPSILON, DELTA * float(most))
    d_1 = (sqrt_c - rho_1).clamp(min=floor)
    rho_1 = max(rho_1, floor)
    e_1 = shares(d_1, rho_1, alpha, D)
    by = learn * e_1.sqrt() / sqrt_c
    return Solution(
        made.copy_(by[:, None] * rows.flip(0) * shares(d_t, rho_t, alpha, D).rsqrt()),
        (keep / learn * (d_t + rho_t)).to(like.dtype),
        (2.0 - e_1).to(like.dtype),
        d_1,
        rho_1,
        bool((c_t.numpy() < c_floor).any() or most**2 > CONDITION_THRESHOLD * least**2),
    )
