"""The online natural gradient: a low-rank Fisher estimate carried from minibatch to minibatch.

Source: Povey, Zhang, Khudanpur, arXiv:1410.7455, appendix "Online natural gradient"; the constants are those
of Kaldi's ``nnet2/nnet-precondition-online``.

The scatter of the rows of a matrix X_t (N x D) is modelled as ``F_t = R_t^T D_t R_t + rho_t I`` with R_t (R x D)
of orthonormal rows. What is inverted is F_t smoothed by the identity, ``G_t = F_t + (alpha/D) tr(F_t) I``. With

    beta_t = rho_t (1 + alpha) + (alpha/D) tr(D_t)
    e_tii  = 1 / (beta_t / d_tii + 1)
    W_t    = E_t^{1/2} R_t

the inverse of G_t times beta_t is ``I - W_t^T W_t``, so that a minibatch costs two thin matrix products:

    H_t = X_t W_t^T,    X^_t = X_t - H_t W_t.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

EPSILON = 1.0e-10  # smallest value of rho_t and d_t
DELTA = 5.0e-4  # smallest value of rho_t and d_t relative to the largest eigenvalue
NUM_INITIAL_UPDATES = 10  # so many updates are made on successive minibatches before update_period counts
NUM_START_PASSES = 3  # passes over the first minibatch that turn the arbitrary start into an estimate
CONDITION_THRESHOLD = 1.0e6  # beyond this ratio of eigenvalues R_t is checked for orthonormality
ORTHONORMALITY_TOLERANCE = 1.0e-3
LARGEST_CHOLESKY_ELEMENT = 100.0  # a larger element of the inverse factor means a repair that is not to be trusted


class FisherEstimate(NamedTuple):
    """F_t, in the form in which it is used: W_t (R x D, the dtype of the data), d_t (R, double), rho_t."""

    W_t: Tensor
    d_t: Tensor
    rho_t: float


def _e(d_t: Tensor, rho_t: float, alpha: float, D: int) -> Tensor:
    """The diagonal of E_t (R, double): the squared lengths of the rows of W_t."""
    beta_t = rho_t * (1.0 + alpha) + alpha / D * d_t.sum()
    return 1.0 / (beta_t / d_t + 1.0)


def start(X: Tensor, rank: int, alpha: float) -> FisherEstimate:
    """The arbitrary estimate from which the first updates start.

    Row r of R_0 has entries in the columns r, r + R, r + 2R, ..., the first 1.1 times as large as the others, so
    that no direction of a symmetric network is left out and no two of its units look alike.

    Args:
        X: (N, D), for its width, dtype and device only.
        rank: R, at most D - 1.
        alpha: smoothing with the identity.
    """
    D = X.shape[1]
    columns = torch.arange(D, device=X.device)
    R_0 = (columns % rank == torch.arange(rank, device=X.device)[:, None]).double()
    R_0[columns[:rank], columns[:rank]] = 1.1
    R_0 /= torch.linalg.vector_norm(R_0, dim=1, keepdim=True)
    d_0 = torch.full((rank,), EPSILON, dtype=torch.float64, device=X.device)
    W_0 = _e(d_0, EPSILON, alpha, D).sqrt()[:, None] * R_0
    return FisherEstimate(W_0.to(X.dtype), d_0, EPSILON)


def update(estimate: FisherEstimate, X: Tensor, H: Tensor, alpha: float, eta: float) -> FisherEstimate:
    """F_{t+1} from F_t and one minibatch.

    Args:
        estimate: the model of F_t.
        X: (N, D) the rows of the minibatch.
        H: (N, R) X W_t^T.
        alpha: smoothing with the identity.
        eta: forgetting factor, between 0 and 1.

    Raises:
        FloatingPointError: the rows hold a value that is not finite, or so large that its square is not.
    """
    W_t, d_t, rho_t = estimate
    N, D = X.shape
    R = W_t.shape[0]
    e_t = _e(d_t, rho_t, alpha, D)

    J_t = H.T @ X
    K_t = (J_t @ J_t.T).double()
    L_t = (H.T @ H if N < D else W_t @ J_t.T).double()

    # Z_t grows with the fourth power of the data: double precision, and scaled to a trace of 1 for the solver.
    inv_sqrt_e = e_t.rsqrt()
    around = inv_sqrt_e[:, None] * inv_sqrt_e
    dr = d_t + rho_t
    L_scaled = L_t * around
    Z_t = (eta / N) ** 2 * K_t * around
    Z_t += (eta / N) * (1.0 - eta) * (L_scaled * dr + dr[:, None] * L_scaled)
    Z_t.diagonal().add_((1.0 - eta) ** 2 * dr**2)
    tr_Z = float(Z_t.trace())
    if not math.isfinite(tr_Z):
        raise FloatingPointError("natural gradient: the minibatch holds values that are not finite, or overflow")
    z_scale = max(1.0, tr_Z)
    c_t, U_t = torch.linalg.eigh(Z_t / z_scale)
    c_t, U_t = c_t.flip(0) * z_scale, U_t.flip(1)  # sorted from the largest
    c_floor = (rho_t * (1.0 - eta)) ** 2
    was_floored = bool((c_t < c_floor).any())
    c_t = c_t.clamp(min=c_floor)
    sqrt_c = c_t.sqrt()

    tr_XX = float(torch.linalg.vector_norm(X, dtype=torch.float64)) ** 2
    rho_1 = (eta / N * tr_XX + (1.0 - eta) * (D * rho_t + float(d_t.sum())) - float(sqrt_c.sum())) / (D - R)
    d_1 = sqrt_c - rho_1
    floor = max(EPSILON, DELTA * float(sqrt_c[0]))
    rho_1 = max(rho_1, floor)
    d_1 = d_1.clamp(min=floor)

    e_1 = _e(d_1, rho_1, alpha, D)
    B_t = J_t + ((1.0 - eta) / (eta / N) * dr).to(X.dtype)[:, None] * W_t
    A_t = (eta / N) * (e_1.sqrt() / sqrt_c)[:, None] * U_t.T * inv_sqrt_e
    W_1 = A_t.to(X.dtype) @ B_t
    if was_floored or float(c_t[0]) > CONDITION_THRESHOLD * float(c_t[-1]):
        W_1 = orthonormalise(W_1, e_1)
    return FisherEstimate(W_1, d_1, rho_1)


def orthonormalise(W: Tensor, e: Tensor) -> Tensor:
    """W (R x D) with R = E^{-1/2} W given orthonormal rows again, where rounding has cost it that.

    A Cholesky factor of E^{-1/2} W W^T E^{-1/2} repairs a small loss; a matrix too far gone for that is taken
    through a QR decomposition, which is Gram-Schmidt on its rows, made stable.
    """
    sqrt_e = e.sqrt()[:, None]
    R = W.double() / sqrt_e
    O = R @ R.T  # noqa: E741  the paper's symbol
    identity = torch.eye(len(e), dtype=O.dtype, device=O.device)
    if float((O - identity).abs().max()) <= ORTHONORMALITY_TOLERANCE:
        return W
    L, failed = torch.linalg.cholesky_ex(O)
    if not int(failed):
        L_inv = torch.linalg.solve_triangular(L, identity, upper=False)
        if float(L_inv.abs().max()) < LARGEST_CHOLESKY_ELEMENT:
            repaired: Tensor = sqrt_e * (L_inv @ R)
            return repaired.to(W.dtype)
    rebuilt: Tensor = sqrt_e * torch.linalg.qr(R.T).Q.T
    return rebuilt.to(W.dtype)


def _scale(x: Tensor, x_hat: Tensor) -> Tensor:
    """gamma = sqrt(tr(X X^T) / tr(X^ X^^T)), 1 where the denominator is 0; a 0-d tensor."""
    before, after = torch.linalg.vector_norm(x), torch.linalg.vector_norm(x_hat)
    return torch.where(after == 0, torch.ones_like(after), before / after)


class OnlineNaturalGradient:
    """Preconditions the rows of successive minibatches by the inverse of a running estimate of their scatter.

    Use one for each side of each layer. Nothing of its state is saved with a model.

    Args:
        rank: R, the rank of the estimate; where it is not below the rows' dimension D, D - 1 is taken.
        alpha: smoothing of the estimate with the identity; the larger, the nearer to plain SGD.
        num_samples_history: the number of rows over which the estimate forgets.
        update_period: after its first ten updates the estimate is renewed on each update_period-th minibatch.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self, rank: int, alpha: float = 4.0, num_samples_history: float = 2000.0, update_period: int = 4
    ) -> None:
        if rank < 1 or update_period < 1:
            raise ValueError(f"rank and update_period must be at least 1, got {rank} and {update_period}")
        if not (alpha > 0.0 and num_samples_history > 0.0):
            raise ValueError(f"alpha and num_samples_history must be above 0, got {alpha} and {num_samples_history}")
        self.rank = rank
        self.alpha = alpha
        self.num_samples_history = num_samples_history
        self.update_period = update_period
        self.t = 0
        self._estimate: FisherEstimate | None = None
        self._num_skipped = 0

    @torch.no_grad()
    def precondition(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """X^_t and its scale gamma, then the update of the estimate where one is due.

        Args:
            x: (N, D), float32 or float64; left as it is.

        Returns:
            x_hat (N, D), not rescaled, and the 0-d tensor gamma by which the learning rate is to be multiplied so
            that the preconditioning changes the direction of a step and not its size.

        Raises:
            ValueError: x is not a matrix, or its width is not that of the minibatches before.
            FloatingPointError: x holds values that are not finite, or overflow.
        """
        if x.dim() != 2:
            raise ValueError(f"expected a matrix of rows (N, D), got shape {tuple(x.shape)}")
        N, D = x.shape
        if D == 1 or N == 0:
            return x.clone(), x.new_ones(())
        if self._estimate is None:
            self._start(x)
        assert self._estimate is not None
        if self._estimate.W_t.shape[1] != D:
            raise ValueError(f"rows have dimension {D}, those before had {self._estimate.W_t.shape[1]}")

        W_t = self._estimate.W_t
        H_t = x @ W_t.T
        x_hat = torch.addmm(x, H_t, W_t, alpha=-1)
        scale = _scale(x, x_hat)
        if self.t < NUM_INITIAL_UPDATES or self._num_skipped >= self.update_period - 1:
            self._estimate = update(self._estimate, x, H_t, self.alpha, self._eta(N))
            self.t += 1
            self._num_skipped = 0
        else:
            self._num_skipped += 1
        return x_hat, scale

    def _start(self, x: Tensor) -> None:
        N, D = x.shape
        estimate = start(x, min(self.rank, D - 1), self.alpha)
        for _ in range(NUM_START_PASSES):
            estimate = update(estimate, x, x @ estimate.W_t.T, self.alpha, self._eta(N))
        self._estimate = estimate

    def _eta(self, N: int) -> float:
        return min(0.9, 1.0 - math.exp(-N / self.num_samples_history))
