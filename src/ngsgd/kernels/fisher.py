"""What is made of R x R matrices when an estimate of ``ngsgd.optim.online`` is renewed, on the host.

Compiled for what comes from floats; by NumPy for whatever else.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ngsgd.kernels.native import library, serves

Doubles = npt.NDArray[np.float64]


def z_of(K: Tensor, L: Tensor, kept: Doubles, inv_sqrt_e: Doubles, learn: float, Z: Tensor) -> float:
    """Z_t = E^{-1/2} (l L D' + l D' L + l^2 K) E^{-1/2} + D'^2, divided by the largest of 1, its trace. D' is diagonal.

    Args:
        K: (R, R).
        L: (R, R).
        kept: (R,), the diagonal of D' = (1 - eta) (D_t + rho_t I).
        inv_sqrt_e: (R,), the diagonal of E^{-1/2}.
        learn: eta / N, l above.
        Z: (R, R), of doubles, for the outcome.

    Returns:
        The trace.
    """
    if serves(K, L):
        trace: float = library.fisher_z(
            K.data_ptr(), L.data_ptr(), kept.ctypes.data, inv_sqrt_e.ctypes.data, learn, Z.data_ptr(), len(K)
        )
        return trace
    z = Z.numpy()
    with np.errstate(all="ignore"):  # who calls looks at the trace
        np.multiply(kept[:, None] + kept, L.double().numpy(), out=z)
        z += learn * K.double().numpy()
        z *= (learn * inv_sqrt_e)[:, None] * inv_sqrt_e
        z.reshape(-1)[:: len(z) + 1] += kept**2
        trace = float(np.trace(z))
        z /= max(1.0, trace)
    return trace


def a_of(U: Tensor, by: Doubles, inv_sqrt_e: Doubles, like: Tensor) -> Tensor:
    """A_t (R, R) = diag(by) U^T E^{-1/2}, of the dtype of ``like`` and on the host.

    Args:
        U: (R, R), an eigenvector in each column, from that of the smallest eigenvalue to that of the largest.
        by: (R,), for the eigenvectors from the largest.
        inv_sqrt_e: (R,), the diagonal of E^{-1/2}.
        like: says of which type the outcome is to be.
    """
    A = torch.empty(U.shape, dtype=like.dtype)
    rows = U.mT.contiguous()
    if serves(A):
        library.fisher_a(rows.data_ptr(), by.ctypes.data, inv_sqrt_e.ctypes.data, A.data_ptr(), len(A))
    else:
        A.copy_(torch.from_numpy(by[:, None] * rows.numpy()[::-1] * inv_sqrt_e))
    return A
