"""The simple natural gradient: each minibatch is preconditioned by the scatter of its own rows.

Source: Povey, Zhang, Khudanpur, arXiv:1410.7455, section "Simple method"; Kaldi's ``nnet2/nnet-precondition``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ngsgd.ops import PreconditionerInput, UpdatedFisher


class SimpleNaturalGradient:
    """Multiplies each row by the inverse of the scatter of the *other* rows, smoothed with the identity.

    A row is left out of its own scatter so that it does not shrink itself. There is no history, but one factorisation
    for each minibatch, which makes this form expensive. The online form is measured against it.

    Args:
        alpha: smoothing; the identity is added with weight ``alpha / (N D) tr(X^T X)``.

    Raises:
        ValueError: alpha is not above 0.
    """

    def __init__(self, alpha: float = 4.0) -> None:
        if not alpha > 0.0:
            raise ValueError(f"alpha must be above 0, got {alpha}")
        self.alpha = alpha

    @torch.no_grad()
    def precondition(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Preconditions a minibatch and rescales the result to the Frobenius norm of x.

        Args:
            x: (N, D), float32 or float64; not modified.

        Returns:
            x_hat (N, D), and the scale, a 0-d tensor that is always 1. With a single row, or x = 0, x_hat equals x.

        Raises:
            ValueError: x is not a matrix.
            FloatingPointError: x holds values that are not finite, or overflow.
        """
        if x.dim() != 2:
            raise ValueError(f"expected a matrix of rows (N, D), got shape {tuple(x.shape)}")
        return self._x_hat(x), x.new_ones(())

    def prepare(self, x: Tensor, order: Sequence[int] | None = None) -> PreconditionerInput:
        """Returns the preconditioned rows, which need no estimate; see `Preconditioner.prepare`."""
        return PreconditionerInput(self._x_hat(x))

    def record(self, updated: UpdatedFisher) -> None:
        raise AssertionError("the simple natural gradient has no estimate to update")

    def _x_hat(self, x: Tensor) -> Tensor:
        N, D = x.shape
        norm = torch.linalg.vector_norm(x)
        if not bool(torch.isfinite(norm)):
            raise FloatingPointError("natural gradient: the minibatch holds values that are not finite, or overflow")
        if N <= 1 or float(norm) == 0.0:
            return x.clone()

        # Everything below is invariant to the scale of X, so X is scaled to a scatter of trace N - 1. Double precision,
        # because with N <= D and a small alpha the denominator at the end is a small difference.
        u = (x / norm).double() * (N - 1) ** 0.5
        lambda_ = self.alpha * (N - 1) / (N * D)
        # G^-1 u_i for all rows, with G = U^T U / (N-1) + lambda I, from the smaller of the two Gram matrices:
        # U (U^T U + c I)^-1 = (U U^T + c I)^-1 U.
        gram = (u.T @ u if D <= N else u @ u.T) / (N - 1)
        gram.diagonal().add_(lambda_)
        factor = torch.linalg.cholesky(gram)
        p = torch.cholesky_solve(u.T, factor).T if D <= N else torch.cholesky_solve(u, factor)
        # Sherman-Morrison: (G - u u^T/(N-1))^-1 u = G^-1 u / (1 - u^T G^-1 u / (N-1)).
        x_hat = p / (1.0 - (u * p).sum(dim=1, keepdim=True) / (N - 1))
        rescaled: Tensor = x_hat * (norm / torch.linalg.vector_norm(x_hat))
        return rescaled.to(x.dtype)
