"""The numeric kernels of a training step: one interface, with backends next to one another.

=====================  =============================================================================================
`append_ones`          the rows of a matrix, with a 1 appended to each
`two_norm`             2-norms of groups of elements, and their derivative; optionally normalized
`normalize`            rows of root-mean-square 1, and their derivative
`forward_backward`     a minibatch through all affine layers of a network and back
`preconditioned_step`  the natural-gradient step of all affine layers
`update_fisher`        the update of Fisher estimates from a minibatch
=====================  =============================================================================================

Backend `reference` implements every function in PyTorch's operators, for any device and dtype. Backend `cpu`
implements them in C for float32 on the CPU. The functions here choose the backend from the device, dtype and layout of
their arguments; nothing outside this package knows which one computes. Backends return their results: no state is kept
between calls. To add a backend, write a module with the functions that it has and a `supports_...` function for each,
and add it to `BACKENDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from torch import Tensor

from ngsgd.ops import cpu, reference
from ngsgd.ops.records import (
    AffineLayer,
    FisherState,
    FisherUpdate,
    ForwardBackwardResult,
    InputTransform,
    Norm,
    OutputLoss,
    PreconditionerInput,
    StepResult,
    UpdatedFisher,
)

__all__ = [
    "AffineLayer",
    "FisherState",
    "FisherUpdate",
    "ForwardBackwardResult",
    "InputTransform",
    "Norm",
    "OutputLoss",
    "PreconditionerInput",
    "StepResult",
    "UpdatedFisher",
    "append_ones",
    "forward_backward",
    "normalize",
    "normalize_backward",
    "preconditioned_step",
    "two_norm",
    "two_norm_backward_",
    "update_fisher",
]

#: The optional backends, the preferred one first; `reference` takes over what none of them supports.
BACKENDS: list[ModuleType] = [cpu] if cpu.is_available else []


def _backend(supports: str, *args: Any, **kwargs: Any) -> ModuleType:
    """The first backend that supports a call, by the name of its `supports_...` function."""
    for backend in BACKENDS:
        check: Callable[..., bool] | None = getattr(backend, supports, None)
        if check is not None and check(*args, **kwargs):
            return backend
    return reference


def append_ones(x: Tensor) -> Tensor:
    """The rows of x (N, D) with a 1 appended to each, (N, D + 1)."""
    rows: Tensor = _backend("supports_append_ones", x).append_ones(x)
    return rows


def two_norm(groups: Tensor, *, normalized: bool) -> tuple[Tensor, Tensor | None]:
    """The 2-norms (..., G) of groups (..., k, G), whose members are G elements apart.

    Args:
        groups: (..., k, G).
        normalized: whether the norms are then normalized as by `normalize`.

    Returns:
        The norms (..., G) and, if they are normalized, the scale of each row (...), else None.
    """
    backend = _backend("supports_two_norm", groups, normalized=normalized)
    result: tuple[Tensor, Tensor | None] = backend.two_norm(groups, normalized=normalized)
    return result


def two_norm_backward_(groups: Tensor, y: Tensor, scale: Tensor | None, dy: Tensor) -> Tensor:
    """Overwrites groups (..., k, G) with the derivative with respect to them, and returns it.

    A group that is all 0 has derivative 0.

    Args:
        groups: the input of `two_norm`.
        y, scale: the results of `two_norm`.
        dy: (..., G), the derivative with respect to y.
    """
    backend = _backend("supports_two_norm_backward_", groups, y, scale, dy)
    derivative: Tensor = backend.two_norm_backward_(groups, y, scale, dy)
    return derivative


def normalize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scales the rows of x (..., D) to root-mean-square 1.

    Returns:
        The scaled rows (..., D) and the scale of each, (...): 0 for a row below Kaldi's norm floor, which is multiplied
        by a constant.
    """
    result: tuple[Tensor, Tensor] = _backend("supports_normalize", x).normalize(x)
    return result


def normalize_backward(y: Tensor, scale: Tensor, dy: Tensor) -> Tensor:
    """The derivative with respect to the input of `normalize` (..., D), given its results and the derivative dy (...,
    D).
    """
    derivative: Tensor = _backend("supports_normalize_backward", y, scale, dy).normalize_backward(y, scale, dy)
    return derivative


def forward_backward(
    x: Tensor, layers: Sequence[AffineLayer], transform: InputTransform, output: OutputLoss
) -> ForwardBackwardResult:
    """Passes x through a network of affine layers to the loss, and back to the lowest layer.

    Args:
        x: (..., D), or (B, T, D) if the transform splices frames.
        layers: from the lowest to the uppermost one, which has no norm.
        transform: the fixed transform below the layers.
        output: the softmax and the labels.

    Raises:
        ValueError: the shapes do not fit one another.
        IndexError: a label is out of range.
    """
    _check_shapes(x, layers, transform, output)
    backend = _backend("supports_forward_backward", x, layers, transform, output)
    result: ForwardBackwardResult = backend.forward_backward(x, layers, transform, output)
    return result


def _check_shapes(x: Tensor, layers: Sequence[AffineLayer], transform: InputTransform, output: OutputLoss) -> None:
    if not layers or not x.dim():
        raise ValueError(
            f"expected at least one layer and a tensor of rows, got {len(layers)} layers, {tuple(x.shape)}"
        )
    B, D = x.shape[0], x.shape[-1]
    N = x.numel() // D if D else 0
    if transform.positions is not None:
        if x.dim() != 3:
            raise ValueError(f"expected frames (B, T, D) to splice, got shape {tuple(x.shape)}")
        P, K = transform.positions.shape
        N, D = B * P, K * D
    if transform.weight is not None:
        if transform.weight.shape[1] != D:
            raise ValueError(f"the input transform takes {transform.weight.shape[1]} dimensions, got {D}")
        D = transform.weight.shape[0]
    for depth, (weight, _, norm, positions) in enumerate(layers):
        D_out, D_in = weight.shape
        if positions is not None:
            if not depth or not B or N % B or positions.shape[1] * D != D_in:
                raise ValueError(f"layer {depth} takes {D_in} dimensions, its positions do not fit the layer below")
            N = B * positions.shape[0]
        elif (N * D) % D_in or (not depth and D_in != D):
            raise ValueError(f"layer {depth} takes {D_in} dimensions, its input has {N} rows of {D}")
        else:
            N = N * D // D_in
        D = D_out if norm is None else D_out // norm.k
    num_classes = None if output.scales is None else len(output.scales)
    if layers[-1].norm is not None or output.labels.shape != (N,) or num_classes not in (None, D):
        raise ValueError(
            f"the network has {N} rows of {D} outputs, got labels of shape {tuple(output.labels.shape)}"
            + ("" if num_classes is None else f" and {num_classes} scales")
        )


def preconditioned_step(
    layers: Sequence[AffineLayer],
    inputs: Sequence[PreconditionerInput],
    derivatives: Sequence[PreconditionerInput],
    lr: float,
    max_change: float,
) -> list[StepResult]:
    """Updates the parameters of each layer in place: W,b <- W,b - s Y^^T X^ with s = lr gamma_x gamma_y.

    s is smaller where the step would move the layer further than max_change N. Fisher estimates that are due are
    updated from the same rows; they are returned and not stored.

    Args:
        layers: the layers; their norms and positions are not used.
        inputs: for each layer the rows of X, (N, D_in + 1), or (N, D_in) without a bias; in the latter form 1 may be
            taken to follow only without preconditioning and max_change.
        derivatives: for each layer the rows of Y (N, D_out), derivatives of the loss.
        lr: learning rate per sample.
        max_change: largest change per sample; 0 for no limit.

    Returns:
        For each layer whether max-change limited its step, and the updated estimates.

    Raises:
        FloatingPointError: an estimate was to be updated from values that are not finite; parameters may have been
            updated from them.
        MemoryError: there is no memory for the update of an estimate; parameters have been updated.
    """
    chosen = [_backend("supports_step", *args) for args in zip(layers, inputs, derivatives, strict=True)]
    results: dict[int, StepResult] = {}
    for backend in dict.fromkeys(chosen):
        own = [i for i, other in enumerate(chosen) if other is backend]
        picked = ([values[i] for i in own] for values in (layers, inputs, derivatives))
        results |= dict(zip(own, backend.preconditioned_step(*picked, lr, max_change), strict=True))
    return [results[i] for i in range(len(layers))]


def update_fisher(inputs: Sequence[PreconditionerInput]) -> list[UpdatedFisher]:
    """F_{t+1} from F_t and the rows of a minibatch, for each of several estimates; see `ngsgd.optim.online`.

    Raises:
        FloatingPointError: rows hold values that are not finite, or whose squares are not.
        MemoryError: there is no memory for an update.
    """
    chosen = [_backend("supports_update_fisher", side) for side in inputs]
    results: dict[int, UpdatedFisher] = {}
    for backend in dict.fromkeys(chosen):
        own = [i for i, other in enumerate(chosen) if other is backend]
        results |= dict(zip(own, backend.update_fisher([inputs[i] for i in own]), strict=True))
    return [results[i] for i in range(len(inputs))]
