"""The renewal of an estimate of ``ngsgd.optim.online``: compiled for floats on a CPU, all of it.

For whatever else, the part that is made of R x R matrices on the host, by PyTorch's operators. What is made of these is
in double precision.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ngsgd.kernels import native
from ngsgd.kernels.native import library, lie_in_rows, serves

EPSILON = 1.0e-10  # smallest value of rho_t and d_t
DELTA = 5.0e-4  # smallest value of rho_t and d_t relative to the largest eigenvalue
NOT_FINITE, NO_MEMORY = 1, 2  # what fisher.c calls so
CONDITION_THRESHOLD = 1.0e6  # beyond this ratio of eigenvalues R_t is checked for orthonormality
ORTHONORMALITY_TOLERANCE = 1.0e-3


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


class Renewed(NamedTuple):
    """What has become of an estimate.

    Attributes:
        W_1: W_{t+1}, (R, D).
        shrunk: (R,), 2 - e_{t+1}.
        d_1: (R,), d_{t+1}, on the host, of doubles.
        rho_1: rho_{t+1}.
        doubtful: whether rounding may have cost R_{t+1} the orthonormality of its rows.
    """

    W_1: Tensor
    shrunk: Tensor
    d_1: Tensor
    rho_1: float
    doubtful: bool


class Solution(NamedTuple):
    """What becomes of an estimate in its own dimensions: W_{t+1} = A_t (J_t + B_t W_t).

    Attributes:
        A_t: (R, R).
        B_t: (R,), the diagonal of a matrix.
        shrunk, d_1, rho_1, doubtful: as of `Renewed`.
    """

    A_t: Tensor
    B_t: Tensor
    shrunk: Tensor
    d_1: Tensor
    rho_1: float
    doubtful: bool


def not_finite() -> FloatingPointError:
    return FloatingPointError("natural gradient: the minibatch holds values that are not finite, or overflow")


class Pending:
    """A renewal that the compiled functions are to make.

    Args:
        W: (R, D).
        given: what it starts from beside matrices.
    """

    def __init__(self, W: Tensor, given: Given) -> None:
        (d_t, rho_t, alpha, eta, _, _), R = given, len(W)
        self._W_1, self._shrunk, self._d_1 = torch.empty_like(W), W.new_empty(R), torch.empty_like(d_t)
        self._d_t = d_t  # for as long as it is read
        self.numbers = native.Renewal(
            d_t.data_ptr(), rho_t, alpha, eta, EPSILON, DELTA, CONDITION_THRESHOLD, ORTHONORMALITY_TOLERANCE,
            self._W_1.data_ptr(), self._shrunk.data_ptr(), self._d_1.data_ptr(),
        )  # fmt: skip

    def made(self) -> Renewed:
        """What they have made.

        Raises:
            FloatingPointError: the rows hold a value that is not finite, or so large that its square is not.
            MemoryError: there is none.
        """
        failed = self.numbers.outcome
        if failed == NOT_FINITE:
            raise not_finite()
        if failed == NO_MEMORY:
            raise MemoryError("natural gradient: no memory to renew an estimate")
        if failed:
            raise FloatingPointError("natural gradient: the eigenvalues of Z_t were not found")
        return Renewed(self._W_1, self._shrunk, self._d_1, self.numbers.rho_1, bool(self.numbers.doubtful))


def renewed(X: Tensor, H: Tensor, W: Tensor, trace: Tensor, given: Given) -> Renewed | None:
    """F_{t+1} from F_t and a minibatch; None where it is not for the compiled functions.

    Args:
        X: (N, D).
        H: (N, R), X W^T.
        W: (R, D).
        trace: tr(X X^T).
        given: what there is beside these.

    Raises:
        FloatingPointError: the rows hold a value that is not finite, or so large that its square is not.
        MemoryError: there is none.
    """
    if not (lie_in_rows(X) and serves(H) and serves(W)):
        return None
    pending = Pending(W, given)
    library.renew(
        pending.numbers, X.data_ptr(), *X.shape, X.stride(0), H.data_ptr(), W.data_ptr(), len(W), float(trace)
    )
    return pending.made()


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
    d_t, rho_t, alpha, eta, N, D = given
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
        (by[:, None] * U.mT.flip(0) * shares(d_t, rho_t, alpha, D).rsqrt()).to(like.dtype),
        (keep / learn * (d_t + rho_t)).to(like.dtype),
        (2.0 - e_1).to(like.dtype),
        d_1,
        rho_1,
        bool((c_t.numpy() < c_floor).any() or most**2 > CONDITION_THRESHOLD * least**2),
    )
