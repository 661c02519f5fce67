"""The online natural gradient: a low-rank Fisher estimate that is carried from minibatch to minibatch.

Source: Povey, Zhang, Khudanpur, arXiv:1410.7455, appendix "Online natural gradient"; the constants are those
of Kaldi's ``nnet2/nnet-precondition-online``.

The estimate. The scatter of the rows of a matrix X_t (N x D) is modelled as

    F_t = R_t^T D_t R_t + rho_t I

with R_t (R x D) of orthonormal rows and D_t diagonal (d_tii). What is inverted is F_t smoothed by the identity,
``G_t = F_t + (alpha/D) tr(F_t) I``. With

    beta_t = rho_t (1 + alpha) + (alpha/D) tr(D_t)
    e_tii  = 1 / (beta_t / d_tii + 1)
    W_t    = E_t^{1/2} R_t

the inverse of G_t times beta_t is ``I - W_t^T W_t``, so that preconditioning a minibatch takes two thin products:

    H_t = X_t W_t^T,    X^_t = X_t - H_t W_t.

Multiplying the learning rate by gamma_t = sqrt(tr(X_t X_t^T) / tr(X^_t X^_t^T)) makes preconditioning change the
direction of a step and not its size.

The update. The estimate moves towards the scatter of the minibatch, by the forgetting factor eta:

    T_t = (eta/N) X_t^T X_t + (1 - eta) F_t.

One step of subspace iteration, Y_t = R_t T_t, finds its leading R directions: with J_t = H_t^T X_t (R x D),

    K_t = J_t J_t^T,    L_t = H_t^T H_t = W_t J_t^T,    D'_t = (1 - eta) (D_t + rho_t I),    l = eta / N
    Z_t = Y_t Y_t^T = E_t^{-1/2} (l L_t D'_t + l D'_t L_t + l^2 K_t) E_t^{-1/2} + D'_t^2 = U_t C_t U_t^T,

so that R_{t+1} = C_t^{-1/2} U_t^T Y_t has orthonormal rows, and

    rho_{t+1}   = (tr(T_t) - tr(C_t^{1/2})) / (D - R)
    d_{t+1,ii}  = c_tii^{1/2} - rho_{t+1}
    W_{t+1}     = A_t (J_t + B_t W_t)
    A_t         = l E_{t+1}^{1/2} C_t^{-1/2} U_t^T E_t^{-1/2}
    B_t         = ((1 - eta) / l) (D_t + rho_t I)

with rho_{t+1} and d_{t+1} not below a floor. `ngsgd.ops.update_fisher` computes this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ngsgd.ops import FisherState, FisherUpdate, PreconditionerInput, UpdatedFisher, update_fisher
from ngsgd.ops.records import EPSILON, ORTHONORMALITY_TOLERANCE, e_t
from ngsgd.optim.preconditioner import at_full_precision

NUM_INITIAL_UPDATES = 10  # updates on successive minibatches before update_period applies
NUM_START_PASSES = 3  # updates from the first minibatch that turn the arbitrary start into an estimate
MAX_CHOLESKY_ELEMENT = 100.0  # a repair with a larger element of the inverse factor is not accurate enough


class OnlineNaturalGradient:
    """Preconditions the rows of successive minibatches by the inverse of a running estimate of their scatter.

    Use one object for each side of each layer. Its state is not saved with a model.

    Args:
        rank: R, the rank of the estimate; D - 1 if it is not below the rows' dimension D.
        alpha: smoothing of the estimate with the identity; the larger, the closer to plain SGD.
        num_samples_history: number of rows after which the estimate has largely forgotten earlier ones.
        update_period: after its first ten updates the estimate is updated on every update_period-th minibatch.

    Raises:
        ValueError: an argument is out of range.
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
        self._t = 0
        self._num_skipped = 0
        self._state: FisherState | None = None
        self._order: Sequence[int] | None = None

    @torch.no_grad()
    def precondition(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Preconditions a minibatch, and updates the estimate where an update is due.

        Args:
            x: (N, D), float32 or float64; not modified.

        Returns:
            x_hat (N, D), not rescaled, and gamma, a 0-d tensor by which the learning rate is to be multiplied.

        Raises:
            ValueError: x is not a matrix, or not as wide as the minibatches before.
            FloatingPointError: x holds values that are not finite, or overflow.
        """
        if x.dim() != 2:
            raise ValueError(f"expected a matrix of rows (N, D), got shape {tuple(x.shape)}")
        with at_full_precision(x.device):
            prepared = self.prepare(x)
            if prepared.fisher is None:
                return prepared.X, x.new_ones(())
            W_t = prepared.fisher.W_t
            x_hat = torch.addmm(x, x @ W_t.T, W_t, alpha=-1)
            before, after = torch.linalg.vecdot(x, x).sum(), torch.linalg.vecdot(x_hat, x_hat).sum()
            gamma = torch.where(after == 0, 1.0, before / after).sqrt_()
            if prepared.update is not None:
                self.record(*update_fisher([prepared]))
            return x_hat, gamma

    def prepare(self, x: Tensor, order: Sequence[int] | None = None) -> PreconditionerInput:
        """Returns the rows of a minibatch with the estimate that preconditions them, and the update if one is due.

        Args:
            x: (N, D).
            order: for each column of x its number in the model's own order, where the columns are stored in another
                one. The first estimate depends on it.

        Raises:
            ValueError: x is not as wide as the minibatches before.
            RuntimeError: the columns are in another order than when the estimate was started.
            FloatingPointError: x is the first minibatch, and holds values that are not finite, or overflow.
        """
        N, D = x.shape
        if D == 1 or N == 0:
            return PreconditionerInput(x.clone())
        update = FisherUpdate(self.alpha, self._eta(N))
        if self._state is None:
            self._state, self._order = self._first_state(x, order, update), order
        if self._state.W_t.shape[1] != D:
            raise ValueError(f"rows have dimension {D}, those before had {self._state.W_t.shape[1]}")
        if order != self._order:
            raise RuntimeError(
                "the layer's outputs have been reordered since the optimiser's first step: use one optimiser inside a "
                "training_layout block and another one outside"
            )
        if self._t >= NUM_INITIAL_UPDATES and self._num_skipped < self.update_period - 1:
            self._num_skipped += 1
            return PreconditionerInput(x, self._state)
        return PreconditionerInput(x, self._state, update)

    def record(self, updated: UpdatedFisher) -> None:
        """Stores an updated estimate, and starts counting to the next update."""
        self._state = self._repaired(updated)
        self._t += 1
        self._num_skipped = 0

    def _eta(self, N: int) -> float:
        return min(0.9, 1.0 - math.exp(-N / self.num_samples_history))

    def _first_state(self, x: Tensor, order: Sequence[int] | None, update: FisherUpdate) -> FisherState:
        """The estimate from the first minibatch alone, which is passed several times."""
        state = initial_fisher_state(x, min(self.rank, x.shape[1] - 1), self.alpha, order)
        for _ in range(NUM_START_PASSES):
            state = self._repaired(*update_fisher([PreconditionerInput(x, state, update)]))
        return state

    def _repaired(self, updated: UpdatedFisher) -> FisherState:
        """The updated estimate, with orthonormal rows of R_{t+1} where rounding may have destroyed them."""
        state = updated.state
        if not updated.needs_reorthogonalizing:
            return state
        e_1 = e_t(state.d_t, state.rho_t, self.alpha, state.W_t.shape[1])
        return state._replace(W_t=orthonormalize(state.W_t, e_1))


def initial_fisher_state(X: Tensor, rank: int, alpha: float, order: Sequence[int] | None = None) -> FisherState:
    """The arbitrary estimate F_0 from which the first updates start.

    Row r of R_0 has entries in the columns r, r + R, r + 2R, ..., the first one 1.1 times as large as the others: no
    direction of a symmetric network is left out, and no two of its units look alike.

    Args:
        X: (N, D); only its width, dtype and device are used.
        rank: R, at most D - 1.
        alpha: smoothing with the identity.
        order: the number of each column of X in the model's own order; None if that is the order.
    """
    D = X.shape[1]
    columns = np.arange(D)
    R_0 = (columns % rank == np.arange(rank)[:, None]).astype(np.float64)
    R_0[columns[:rank], columns[:rank]] = 1.1
    R_0 /= np.linalg.norm(R_0, axis=1, keepdims=True)
    if order is not None:
        R_0 = R_0[:, list(order)]
    d_0 = torch.full((rank,), EPSILON, dtype=torch.float64)
    e_0 = e_t(d_0, EPSILON, alpha, D)
    W_0 = (e_0.sqrt()[:, None] * torch.from_numpy(R_0)).to(X).contiguous()
    return FisherState(W_0, (2.0 - e_0).to(X), d_0, EPSILON)


def orthonormalize(W: Tensor, e: Tensor) -> Tensor:
    """Restores orthonormal rows of R = E^{-1/2} W where rounding has destroyed them; returns the new W (R, D).

    A Cholesky factor of R R^T repairs a small loss. A matrix that is too far gone for that is rebuilt by a QR
    decomposition, which is a stable Gram-Schmidt on its rows.

    Args:
        W: (R, D).
        e: (R,), the squared lengths that its rows should have.
    """
    sqrt_e = e.to(W.device).sqrt()[:, None]
    R = W.double() / sqrt_e
    O = (R @ R.T).cpu()  # noqa: E741  the paper's symbol; this waits for a GPU, but is rare
    identity = torch.eye(len(e), dtype=O.dtype)
    if float((O - identity).abs().max()) <= ORTHONORMALITY_TOLERANCE:
        return W
    L, failed = torch.linalg.cholesky_ex(O)
    if not int(failed):
        L_inv = torch.linalg.solve_triangular(L, identity, upper=False)
        if float(L_inv.abs().max()) < MAX_CHOLESKY_ELEMENT:
            repaired: Tensor = sqrt_e * (L_inv.to(W.device) @ R)
            return repaired.to(W.dtype)
    rebuilt: Tensor = sqrt_e * torch.linalg.qr(R.T).Q.T
    return rebuilt.to(W.dtype).contiguous()
