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

The renewal of an estimate needs products over the minibatch, which are formed where the data lies, and an
eigendecomposition of an R x R matrix, which is made on the host: for all estimates together a GPU is waited for once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ngsgd.kernels.fisher import (
    EPSILON,
    ORTHONORMALITY_TOLERANCE,
    Given,
    Renewed,
    Solution,
    not_finite,
    renewed,
    shares,
    solution_of,
    z_of,
)
from ngsgd.kernels.native import in_reach
from ngsgd.kernels.step import Preconditioned
from ngsgd.optim.preconditioner import at_full_precision, scales

NUM_INITIAL_UPDATES = 10  # so many updates are made on successive minibatches before update_period counts
NUM_START_PASSES = 3  # passes over the first minibatch that turn the arbitrary start into an estimate
LARGEST_CHOLESKY_ELEMENT = 100.0  # a larger element of the inverse factor means a repair that is not to be trusted


class FisherEstimate(NamedTuple):
    """F_t, in the form in which it is used.

    Attributes:
        W_t: (R, D), where the data lies and of its dtype.
        shrunk: (R,), likewise: 2 - e_t, by which the squares of H_t's columns go into tr(X X^T) - tr(X^ X^^T).
        d_t: (R,), on the host, of doubles.
        rho_t: on the host.
    """

    W_t: Tensor
    shrunk: Tensor
    d_t: Tensor
    rho_t: float


class Renewal(NamedTuple):
    """What an estimate is to be renewed from.

    Attributes:
        estimate: F_t.
        X: (N, D) the rows of the minibatch.
        H: (N, R) X W_t^T.
        trace: tr(X X^T), 0-d.
        alpha: smoothing with the identity.
        eta: forgetting factor, between 0 and 1.
    """

    estimate: FisherEstimate
    X: Tensor
    H: Tensor
    trace: Tensor
    alpha: float
    eta: float

    def given(self) -> Given:
        """What goes into the part of the update in the estimate's dimensions."""
        return Given(self.estimate.d_t, self.estimate.rho_t, self.alpha, self.eta, *self.X.shape)


def start(X: Tensor, rank: int, alpha: float, order: Sequence[int] | None = None) -> FisherEstimate:
    """The arbitrary estimate from which the first updates start.

    Row r of R_0 has entries in the columns r, r + R, r + 2R, ..., the first 1.1 times as large as the others, so
    that no direction of a symmetric network is left out and no two of its units look alike.

    Args:
        X: (N, D), for its width, dtype and device only.
        rank: R, at most D - 1.
        alpha: smoothing with the identity.
        order: the numbers of the columns of X, where they do not lie in their order.
    """
    D = X.shape[1]
    columns = np.arange(D)
    R_0 = (columns % rank == np.arange(rank)[:, None]).astype(np.float64)
    R_0[columns[:rank], columns[:rank]] = 1.1
    R_0 /= np.linalg.norm(R_0, axis=1, keepdims=True)
    if order is not None:
        R_0 = R_0[:, list(order)]
    d_0 = torch.full((rank,), EPSILON, dtype=torch.float64)
    e_0 = shares(d_0, EPSILON, alpha, D)
    W_0 = (e_0.sqrt()[:, None] * torch.from_numpy(R_0)).to(X).contiguous()
    return FisherEstimate(W_0, (2.0 - e_0).to(X), d_0, EPSILON)


def update(renewals: Sequence[Renewal]) -> list[FisherEstimate]:
    """F_{t+1} from F_t and one minibatch, for each of several estimates, which may differ in all dimensions.

    Raises:
        FloatingPointError: the rows hold a value that is not finite, or so large that its square is not.
    """
    made: dict[int, FisherEstimate] = {}
    places = defaultdict(list)
    for i, renewal in enumerate(renewals):
        estimate = renewal.estimate
        at_once = renewed(renewal.X, renewal.H, estimate.W_t, renewal.trace, renewal.given())
        if at_once is None:
            places[renewal.X.device, renewal.X.dtype].append(i)
        else:
            made[i] = _estimate(renewal.alpha, at_once)
    for there in places.values():
        made |= dict(zip(there, _together([renewals[i] for i in there]), strict=True))
    return [made[i] for i in range(len(renewals))]


def _together(renewals: Sequence[Renewal]) -> list[FisherEstimate]:
    """As `update`, of estimates that lie in one place, which is waited for once."""
    products = [_products(renewal) for renewal in renewals]
    small = iter(_on_host([part for _, *parts in products for part in parts]))
    solutions = [_solve(renewal, next(small), next(small), next(small)) for renewal in renewals]
    return _renewed(renewals, [J_t for J_t, *_ in products], solutions)


def _products(renewal: Renewal) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """J_t (R x D), K_t and L_t (R x R), tr(X X^T)."""
    (W_t, _, _, _), X, H, tr_XX, _, _ = renewal
    J_t = H.T @ X
    return J_t, J_t @ J_t.T, H.T @ H if X.shape[0] < X.shape[1] else W_t @ J_t.T, tr_XX


def _on_host(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The tensors in the host's memory; from a GPU in one piece, so that it is waited for once."""
    if in_reach(tensors[0]):
        return tensors
    host = torch.cat([tensor.reshape(-1) for tensor in tensors]).cpu()
    pieces = torch.split(host, [tensor.numel() for tensor in tensors])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]


def _solve(renewal: Renewal, K_t: Tensor, L_t: Tensor, trace: Tensor) -> Solution:
    """The part of the update in the R dimensions of the estimate.

    Args:
        renewal: the estimate and the minibatch.
        K_t, L_t: (R, R), on the host.
        trace: tr(X X^T), likewise.
    """
    given, tr_XX = renewal.given(), float(trace.numpy())
    # Z_t grows with the fourth power of the data: double precision, and scaled to a trace of 1 for the solver.
    Z_t, tr_Z = z_of(K_t, L_t, given)
    # A value of X that is not finite is on the diagonals, too.
    if not (math.isfinite(tr_Z) and math.isfinite(tr_XX)):
        raise not_finite()
    # torch's solver, whose number of threads is the job's.
    values, U_t = torch.linalg.eigh(Z_t)
    return solution_of(values, U_t, tr_Z, tr_XX, given, renewal.X)


def _renewed(
    renewals: Sequence[Renewal], products: Sequence[Tensor], solutions: Sequence[Solution]
) -> list[FisherEstimate]:
    """F_{t+1} of each estimate, given its J_t."""
    device = products[0].device
    parts = [part for s in solutions for part in (s.A_t, s.B_t, s.shrunk)]
    if device.type == "cuda":  # it goes there in one piece, too; pinned, else the copy would wait for the device
        host = torch.cat([part.reshape(-1) for part in parts]).pin_memory()
        there = torch.split(host.to(device, non_blocking=True), [part.numel() for part in parts])
        parts = [piece.view(part.shape) for piece, part in zip(there, parts, strict=True)]
    estimates = []
    for i, (renewal, J_t, solution) in enumerate(zip(renewals, products, solutions, strict=True)):
        A_t, B_t, shrunk = parts[3 * i : 3 * i + 3]
        W_1 = A_t @ torch.addcmul(J_t, B_t[:, None], renewal.estimate.W_t)
        made = Renewed(W_1, shrunk, solution.d_1, solution.rho_1, solution.doubtful)
        estimates.append(_estimate(renewal.alpha, made))
    return estimates


def _estimate(alpha: float, made: Renewed) -> FisherEstimate:
    """The estimate that a renewal has made, put right where need be."""
    W_1, shrunk, d_1, rho_1, doubtful = made
    if doubtful:
        W_1 = orthonormalise(W_1, shares(d_1, rho_1, alpha, W_1.shape[1]))
    return FisherEstimate(W_1, shrunk, d_1, rho_1)


def orthonormalise(W: Tensor, e: Tensor) -> Tensor:
    """W (R x D) with R = E^{-1/2} W given orthonormal rows again, where rounding has cost it that.

    A Cholesky factor of E^{-1/2} W W^T E^{-1/2} repairs a small loss; a matrix too far gone for that is taken
    through a QR decomposition, which is Gram-Schmidt on its rows, made stable.
    """
    sqrt_e = e.to(W.device).sqrt()[:, None]
    R = W.double() / sqrt_e
    O = (R @ R.T).cpu()  # noqa: E741  the paper's symbol; a GPU is waited for here, which is rare
    identity = torch.eye(len(e), dtype=O.dtype)
    if float((O - identity).abs().max()) <= ORTHONORMALITY_TOLERANCE:
        return W
    L, failed = torch.linalg.cholesky_ex(O)
    if not int(failed):
        L_inv = torch.linalg.solve_triangular(L, identity, upper=False)
        if float(L_inv.abs().max()) < LARGEST_CHOLESKY_ELEMENT:
            repaired: Tensor = sqrt_e * (L_inv.to(W.device) @ R)
            return repaired.to(W.dtype)
    rebuilt: Tensor = sqrt_e * torch.linalg.qr(R.T).Q.T
    return rebuilt.to(W.dtype).contiguous()


class OnlineNaturalGradient:
    """Preconditions the rows of successive minibatches by the inverse of a running estimate of their scatter.

    Use one for each side of each layer. Nothing of its state is saved with a model.

    Args:
        rank: R, the rank of the estimate; where it is not below the rows' dimension D, D - 1 is taken.
        alpha: smoothing of the estimate with the identity; the larger, the nearer to plain SGD.
        num_samples_history: the number of rows over which the estimate forgets.
        update_period: after its first ten updates the estimate is renewed on each update_period-th minibatch.
        order: the numbers of the rows' dimensions, where they do not lie in their order. The first estimate depends on
            these.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        rank: int,
        alpha: float = 4.0,
        num_samples_history: float = 2000.0,
        update_period: int = 4,
        order: Sequence[int] | None = None,
    ) -> None:
        if rank < 1 or update_period < 1:
            raise ValueError(f"rank and update_period must be at least 1, got {rank} and {update_period}")
        if not (alpha > 0.0 and num_samples_history > 0.0):
            raise ValueError(f"alpha and num_samples_history must be above 0, got {alpha} and {num_samples_history}")
        self.rank = rank
        self.alpha = alpha
        self.num_samples_history = num_samples_history
        self.update_period = update_period
        self.order = order
        self.t = 0
        self._estimate: FisherEstimate | None = None
        self._num_skipped = 0
        self._due: Preconditioned | None = None

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
        with at_full_precision(x.device):
            applied = self.apply(x)
            renew([self])
            return applied.formed(), scales(*applied.traces)

    def apply(self, x: Tensor) -> Preconditioned:
        """Preconditions the rows x (N, D) by the estimate as it is; where it is due, `renew` is to renew it.

        Raises:
            ValueError: the width of x is not that of the minibatches before.
            FloatingPointError: x is the first minibatch, and holds values that are not finite, or overflow.
        """
        N, D = x.shape
        if D == 1 or N == 0:
            return Preconditioned(x.clone())
        if self._estimate is None:
            self._start(x)
        assert self._estimate is not None
        W_t, shrunk, d_t, rho_t = self._estimate
        if W_t.shape[1] != D:
            raise ValueError(f"rows have dimension {D}, those before had {W_t.shape[1]}")

        if self.t >= NUM_INITIAL_UPDATES and self._num_skipped < self.update_period - 1:
            self._num_skipped += 1
            return Preconditioned(x, W_t, shrunk)
        self._due = Preconditioned(x, W_t, shrunk, Given(d_t, rho_t, self.alpha, self._eta(N), N, D))
        return self._due

    def _start(self, x: Tensor) -> None:
        estimate = start(x, min(self.rank, x.shape[1] - 1), self.alpha, self.order)
        tr_XX = torch.linalg.vector_norm(x, dtype=torch.float64).square()
        for _ in range(NUM_START_PASSES):
            renewal = Renewal(estimate, x, x @ estimate.W_t.T, tr_XX, self.alpha, self._eta(len(x)))
            (estimate,) = update([renewal])
        self._estimate = estimate

    def _eta(self, N: int) -> float:
        return min(0.9, 1.0 - math.exp(-N / self.num_samples_history))

    def take_due(self) -> Preconditioned | None:
        """What the estimate is due to be renewed from, if it is; that is forgotten then."""
        due, self._due = self._due, None
        return due

    def renewal(self, due: Preconditioned) -> Renewal:
        """What it takes to renew the estimate from that."""
        assert self._estimate is not None
        assert due.H is not None
        assert due.given is not None
        return Renewal(self._estimate, due.X, due.H, due.traces[0], due.given.alpha, due.given.eta)

    def accept(self, estimate: FisherEstimate) -> None:
        """Goes on from a renewed estimate."""
        self._estimate = estimate
        self.t += 1
        self._num_skipped = 0


def renew(preconditioners: Sequence[OnlineNaturalGradient]) -> None:
    """Renews the estimates that are due, all at once.

    Raises:
        FloatingPointError: the rows of one hold a value that is not finite, or so large that its square is not. No
            estimate has changed.
    """
    due = [(side, applied) for side in preconditioners if (applied := side.take_due()) is not None]
    estimates = []
    others = []
    for side, applied in due:
        # Where the step of the layer was compiled, it has renewed the estimate, too.
        if (made := applied.renewed()) is not None:
            estimates.append((side, _estimate(side.alpha, made)))
        else:
            others.append((side, side.renewal(applied)))
    estimates += zip([side for side, _ in others], update([renewal for _, renewal in others]), strict=True)
    for side, estimate in estimates:
        side.accept(estimate)
