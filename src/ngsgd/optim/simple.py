"""The simple natural gradient: each minibatch is preconditioned by the scatter of its own rows.

Source: Povey, Zhang, Khudanpur, arXiv:1410.7455, section "Simple method"; Kaldi's ``nnet2/nnet-precondition``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ngsgd.kernels.step import Preconditioned


class SimpleNaturalGradient:
    """Multiplies each row by the inverse of the scatter of the *other* rows, smoothed with the identity.

    A row is left out of its own scatter so that it does not shrink itself. There is no history, and one
    factorisation a minibatch: dear beside the online form, and its yardstick.

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
        """X^, rescaled to the Frobenius norm of X.

        Args:
            x: (N, D), float32 or float64; left as it is.

        Returns:
            x_hat (N, D), and the scale, a 0-d tensor that is always 1. With a single row, or X = 0, x_hat is x.

        Raises:
            ValueError: x is not a matrix.
            FloatingPointError: x holds values that are not finite, or overflow.
        """
        if x.dim() != 2:
            raise ValueError(f"expected a matrix of rows (N, D), got shape {tuple(x.shape)}")
        return self.apply(x).formed(), x.new_ones(())

    def apply(self, x: Tensor) -> Preconditioned:
        """The same for the optimiser.

        Raises:
            FloatingPointError: x holds values that are not finite, or overflow.
        """
        N, D = x.shape
        norm = torch.linalg.vector_norm(x)
        if not bool(torch.isfinite(norm)):
            raise FloatingPointError("natural gradient: the minibatch holds values that are not finite, or overflow")
        if N <= 1 or float(norm) == 0.0:
            return Preconditioned(x.clone())

        # Everything below is the same for X and a multiple of it, so take the one whose scatter has trace N - 1; in
        # double precision, since with N <= D and a small alpha the denominator at the end is a small difference.
        u = (x / norm).double() * (N - 1) ** 0.5
        lambda_ = self.alpha * (N - 1) / (N * D)
        # G^-1 u_i for all rows, G = U^T U / (N-1) + lambda I; by the smaller of the two Gram matrices, which
        # serve alike since U (U^T U + c I)^-1 = (U U^T + c I)^-1 U.
        gram = (u.T @ u if D <= N else u @ u.T) / (N - 1)
        gram.diagonal().add_(lambda_)
        factor = torch.linalg.cholesky(gram)
        p = torch.cholesky_solve(u.T, factor).T if D <= N else torch.cholesky_solve(u, factor)
        # Sherman-Morrison: (G - u u^T/(N-1))^-1 u = G^-1 u / (1 - u^T G^-1 u / (N-1)).
        x_hat = p / (1.0 - (u * p).sum(dim=1, keepdim=True) / (N - 1))
        return Preconditioned((x_hat * (norm / torch.linalg.vector_norm(x_hat))).to(x.dtype))
