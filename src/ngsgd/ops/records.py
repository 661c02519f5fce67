"""Records that the functions of `ngsgd.ops` take and return, and the constants of the formulas."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

EPSILON = 1.0e-10  # smallest value of rho_t and d_t
DELTA = 5.0e-4  # smallest value of rho_t and d_t relative to the largest eigenvalue
CONDITION_THRESHOLD = 1.0e6  # above this ratio of eigenvalues R_t is checked for orthonormality
ORTHONORMALITY_TOLERANCE = 1.0e-3
NORM_FLOOR = 2.0**-66  # Kaldi's kNormFloor: the smallest mean square that `normalize` divides by
TINY = 1.0e-20  # the smallest 2-norm that is divided by: the squares of the members of smaller groups underflow


class Norm(NamedTuple):
    """How the outputs z (N, k G) of an affine layer become its output (N, G): the 2-norm of each group.

    The k members of a group are G elements apart.

    Attributes:
        k: members of a group.
        normalized: whether each row of norms is then scaled to root-mean-square 1.
    """

    k: int
    normalized: bool


class AffineLayer(NamedTuple):
    """A trained affine layer, y = W x + b.

    Attributes:
        weight: W (D_out, D_in).
        bias: b (D_out,), or None.
        norm: how the outputs become the layer's output; None if they are the output.
        positions: (P, K) int64, for a layer above the lowest one: the positions of the layer below whose outputs are
            concatenated for each of the P positions of an example. None: all outputs are used in order.
    """

    weight: Tensor
    bias: Tensor | None
    norm: Norm | None = None
    positions: Tensor | None = None


class InputTransform(NamedTuple):
    """The fixed transform below the lowest trained layer.

    Attributes:
        positions: (P, K) int64: the frames that are spliced for each of the P positions of an example; None if x is
            used as it is.
        weight: (D_1, K D), or None without an affine transform.
        bias: (D_1,), or None.
    """

    positions: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None


class OutputLoss(NamedTuple):
    """The softmax and the cross-entropy above the uppermost layer.

    Attributes:
        scales: (C,), by which the outputs are multiplied before the softmax, or None.
        labels: (N,) int64, the class of each row.
    """

    scales: Tensor | None
    labels: Tensor


class ForwardBackwardResult(NamedTuple):
    """The result of a forward and a backward pass.

    Attributes:
        loss: 0-d, minus the log posteriors of the labels, summed.
        correct: 0-d int64, how many labels are the most likely class (the first one of several).
        rows: for each layer its input rows with a 1 appended, (N, D_in + 1), and the derivative of the loss with
            respect to z, (N, D_out).
    """

    loss: Tensor
    correct: Tensor
    rows: list[tuple[Tensor, Tensor]]


class FisherState(NamedTuple):
    """The Fisher estimate F_t of the rows of a matrix; see `ngsgd.optim.online` for the symbols.

    Attributes:
        W_t: (R, D), on the device and with the dtype of the data.
        two_minus_e: (R,), likewise: 2 - e_t, the weights of the squares of H_t's columns in tr(X X^T) - tr(X^ X^^T).
        d_t: (R,) float64, on the host.
        rho_t: on the host.
    """

    W_t: Tensor
    two_minus_e: Tensor
    d_t: Tensor
    rho_t: float


class FisherUpdate(NamedTuple):
    """How a Fisher estimate is updated from a minibatch.

    Attributes:
        alpha: smoothing with the identity.
        eta: forgetting factor, between 0 and 1.
    """

    alpha: float
    eta: float


class UpdatedFisher(NamedTuple):
    """An updated Fisher estimate.

    Attributes:
        state: F_{t+1}.
        needs_reorthogonalizing: whether rounding may have cost R_{t+1} its orthonormal rows.
    """

    state: FisherState
    needs_reorthogonalizing: bool


class PreconditionerInput(NamedTuple):
    """One side of a layer's step: the rows of a minibatch and the Fisher estimate that preconditions them.

    Attributes:
        X: (N, D).
        fisher: the estimate; None for X^ = X.
        update: how the estimate is updated from X; None if no update is due.
    """

    X: Tensor
    fisher: FisherState | None = None
    update: FisherUpdate | None = None


class StepResult(NamedTuple):
    """The result of a layer's step, which has updated the layer's parameters in place.

    Attributes:
        limited: whether max-change shortened the step: a bool, or a 0-d tensor where reading it would wait for a GPU.
        x_fisher, y_fisher: the updated estimates of the two sides, where an update was due.
    """

    limited: bool | Tensor
    x_fisher: UpdatedFisher | None
    y_fisher: UpdatedFisher | None


def e_t(d_t: Tensor, rho_t: float, alpha: float, D: int) -> Tensor:
    """The diagonal of E_t (R,): the squared lengths of the rows of W_t."""
    beta_t = rho_t * (1.0 + alpha) + alpha / D * d_t.sum()
    return 1.0 / (beta_t / d_t + 1.0)


def label_error(num_classes: int) -> IndexError:
    """The error of a label that is out of range."""
    return IndexError(f"a label is none of the classes, 0 to {num_classes - 1}")


def not_finite_error() -> FloatingPointError:
    """The error of a minibatch from which no Fisher estimate can be updated."""
    return FloatingPointError("natural gradient: the minibatch holds values that are not finite, or overflow")
