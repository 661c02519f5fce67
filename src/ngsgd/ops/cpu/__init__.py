"""The CPU backend: kernels in C for float32 tensors in row-major order.

The installation compiles it where there is a C compiler. Matrix products and eigenvalues are computed by the libraries
inside PyTorch. Addresses stay in this module: its functions take and return tensors.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.nn import Parameter

from ngsgd.ops.layout import ALIGNMENT, aligned_empty, is_fused
from ngsgd.ops.records import (
    CONDITION_THRESHOLD,
    DELTA,
    EPSILON,
    NORM_FLOOR,
    ORTHONORMALITY_TOLERANCE,
    TINY,
    AffineLayer,
    FisherState,
    ForwardBackwardResult,
    InputTransform,
    OutputLoss,
    PreconditionerInput,
    StepResult,
    UpdatedFisher,
    label_error,
    not_finite_error,
)


def _load() -> tuple[Any, Any] | None:
    """The bindings and their library, or None where the kernels are not compiled or PyTorch hides its BLAS."""
    try:
        from ngsgd.ops.cpu._kernels import ffi, lib
    except ImportError:
        return None
    try:
        # Where BLAS and LAPACK are libraries of their own, libtorch_cpu depends on them and finds their symbols.
        torch_cpu = ctypes.CDLL(str(next(Path(torch.__file__).with_name("lib").glob("libtorch_cpu.*"))))
        addresses = (ctypes.cast(getattr(torch_cpu, name), ctypes.c_void_p).value for name in ("sgemm_", "dsyevd_"))
    except (OSError, AttributeError, StopIteration):
        return None
    lib.set_blas(*(ffi.cast("void *", address) for address in addresses))
    return ffi, lib


ffi: Any
lib: Any
ffi, lib = _load() or (None, None)
is_available = lib is not None


def is_supported(*tensors: Tensor | None) -> bool:
    """Whether all tensors are contiguous float32 tensors on the CPU.

    Subclasses of tensors, such as those by which PyTorch traces, may have no memory of their own.
    """
    return all(
        t is None or (type(t) is Tensor and t.dtype is torch.float32 and t.is_cpu and t.is_contiguous())
        for t in tensors
    )


def is_supported_matrix(m: Tensor) -> bool:
    """Whether m is a float32 matrix on the CPU with contiguous rows, which may be further apart than they are long."""
    if type(m) not in (Tensor, Parameter) or m.dtype is not torch.float32 or not m.is_cpu:
        return False
    strides, shape = m.stride(), m.shape
    return len(shape) == 2 and strides[1] == 1 and strides[0] >= shape[1] > 0


def _is_supported_index(t: Tensor | None) -> bool:
    return t is None or (type(t) is Tensor and t.dtype is torch.int64 and t.is_cpu and t.is_contiguous())


def _floats(t: Tensor | None, offset: int = 0) -> Any:
    """The address of a tensor's elements, for C."""
    return ffi.NULL if t is None else ffi.cast("float *", t.data_ptr() + 4 * offset)


def _longs(t: Tensor | None) -> Any:
    return ffi.NULL if t is None else ffi.cast("long *", t.data_ptr())


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def supports_append_ones(x: Tensor) -> bool:
    return is_supported(x)


def append_ones(x: Tensor) -> Tensor:
    N, D = x.shape
    rows = aligned_empty(N, D + 1, x)
    lib.append_ones(_floats(x), _floats(rows), N, D, rows.stride(0))
    return rows


def supports_two_norm(groups: Tensor, *, normalized: bool) -> bool:
    return is_supported(groups)


def two_norm(groups: Tensor, *, normalized: bool) -> tuple[Tensor, Tensor | None]:
    *N, k, G = groups.shape
    y, scale = groups.new_empty(*N, G), groups.new_empty(N) if normalized else None
    lib.two_norm(_floats(groups), _floats(y), _floats(scale), math.prod(N), k, G, NORM_FLOOR)
    return y, scale


def supports_two_norm_backward_(groups: Tensor, y: Tensor, scale: Tensor | None, dy: Tensor) -> bool:
    return is_supported(groups, y, scale, dy)


def two_norm_backward_(groups: Tensor, y: Tensor, scale: Tensor | None, dy: Tensor) -> Tensor:
    *N, k, G = groups.shape
    factor = y.new_empty(G)
    lib.two_norm_backward(
        _floats(groups), _floats(y), _floats(scale), _floats(dy), _floats(factor), math.prod(N), k, G, NORM_FLOOR, TINY
    )
    increment_version(groups)
    return groups


def supports_normalize(x: Tensor) -> bool:
    return is_supported(x)


def normalize(x: Tensor) -> tuple[Tensor, Tensor]:
    *N, D = x.shape
    y, scale = torch.empty_like(x), x.new_empty(N)
    lib.normalize(_floats(x), _floats(y), _floats(scale), math.prod(N), D, NORM_FLOOR)
    return y, scale


def supports_normalize_backward(y: Tensor, scale: Tensor, dy: Tensor) -> bool:
    return is_supported(y, scale, dy)


def normalize_backward(y: Tensor, scale: Tensor, dy: Tensor) -> Tensor:
    *N, D = y.shape
    dx = torch.empty_like(y)
    lib.normalize_backward(_floats(y), _floats(scale), _floats(dy), _floats(dx), math.prod(N), D, NORM_FLOOR)
    return dx


def supports_forward_backward(
    x: Tensor, layers: Sequence[AffineLayer], transform: InputTransform, output: OutputLoss
) -> bool:
    return (
        is_supported(x, transform.weight, transform.bias, output.scales)
        and x.numel() > 0
        and (transform.weight is None) == (transform.bias is None)
        and _is_supported_index(transform.positions)
        and _is_supported_index(output.labels)
        and all(
            is_supported_matrix(weight)
            and bias is not None
            and is_fused(weight, bias)
            and _is_supported_index(positions)
            for weight, bias, _, positions in layers
        )
        and layers[-1].norm is None
    )


def forward_backward(
    x: Tensor, layers: Sequence[AffineLayer], transform: InputTransform, output: OutputLoss
) -> ForwardBackwardResult:
    B, D = x.shape[0], x.shape[-1]
    T = x.shape[1] if transform.positions is not None else 1
    P, K = (1, 1) if transform.positions is None else transform.positions.shape
    N = x.numel() // D if transform.positions is None else B * P
    size = N * (K * D if transform.bias is None else len(transform.bias))  # elements that go into the layer

    # The workspace: the arrays of all layers one after the other, each starting at an aligned address.
    used = _aligned(N * K * D) if transform.positions is not None and transform.weight is not None else 0
    offsets: list[dict[str, int]] = []
    num_rows: list[int] = []
    last = len(layers) - 1
    for i, (weight, _, norm, positions) in enumerate(layers):
        D_out, D_in = weight.shape
        G = D_out if norm is None else D_out // norm.k
        N = size // D_in if positions is None else B * len(positions)
        spliced_above = i < last and layers[i + 1].positions is not None
        needs_dx = i > 0 and (positions is not None or layers[i - 1].norm is not None)
        sizes = {
            "rows": N * _aligned(D_in + 1),
            "z": N * D_out,
            "y": N * G if norm else 0,
            "scale": N if norm and norm.normalized else 0,
            "factor": G if norm else 0,
            # Without splicing and norms a derivative replaces the array with respect to which it is taken.
            "dx": N * D_in if needs_dx else 0,
            "dy": N * G if spliced_above and norm else 0,
        }
        layer_offsets = {}
        for name, elements in sizes.items():
            if elements:
                layer_offsets[name] = used
                used += _aligned(elements)
        offsets.append(layer_offsets)
        num_rows.append(N)
        size = N * G
    workspace = x.new_empty(used)

    c_transform = ffi.new("InputTransform *")
    c_transform.D, c_transform.T, c_transform.P, c_transform.K = D, T, P, K
    c_transform.positions = _longs(transform.positions)
    c_transform.W, c_transform.b = _floats(transform.weight), _floats(transform.bias)
    c_transform.spliced = _floats(workspace)
    c_layers = ffi.new("Layer[]", len(layers))
    for i, (weight, _, norm, positions) in enumerate(layers):
        layer, D_out = c_layers[i], weight.shape[0]
        layer.W, layer.W_stride, layer.D = _floats(weight), weight.stride(0), weight.shape[1]
        layer.k = 1 if norm is None else norm.k
        layer.G = D_out // layer.k
        layer.norm = lib.NO_NORM if norm is None else lib.NORMALIZED_TWO_NORM if norm.normalized else lib.TWO_NORM
        if positions is not None:
            layer.positions, (layer.P, layer.K) = _longs(positions), positions.shape
            layer.T = num_rows[i - 1] // B
        layer.N, layer.stride = num_rows[i], _aligned(weight.shape[1] + 1)
        for name, offset in offsets[i].items():
            setattr(layer, name, _floats(workspace, offset))
    for i in range(len(layers)):
        if layers[i].norm is None:
            c_layers[i].dy = c_layers[i].z
        if i > 0:
            if "dx" not in offsets[i]:
                c_layers[i].dx = c_layers[i - 1].dy
            if not c_layers[i - 1].dy:
                c_layers[i - 1].dy = c_layers[i].dx
    c_output = ffi.new("OutputLoss *", {"scales": _floats(output.scales), "labels": _longs(output.labels)})

    lib.forward_backward(c_transform, c_layers, len(layers), c_output, _floats(x), NORM_FLOOR, TINY)

    if c_output.correct < 0:
        raise label_error(layers[-1].weight.shape[0])
    rows = []
    for (weight, _, _, _), N, layer_offsets in zip(layers, num_rows, offsets, strict=True):
        D_out, D_in = weight.shape
        inputs = workspace.as_strided((N, D_in + 1), (_aligned(D_in + 1), 1), layer_offsets["rows"])
        rows.append((inputs, workspace.as_strided((N, D_out), (D_out, 1), layer_offsets["z"])))
    return ForwardBackwardResult(x.new_tensor(c_output.loss), x.new_tensor(c_output.correct, dtype=torch.int64), rows)


def supports_step(layer: AffineLayer, x: PreconditionerInput, y: PreconditionerInput) -> bool:
    weight, bias = layer.weight, layer.bias
    if not (is_supported_matrix(weight) and _supports_side(x) and _supports_side(y)):
        return False
    if x.X.shape[1] != weight.shape[1] + (bias is not None) or y.X.shape != (len(x.X), len(weight)):
        return False
    return bias is None or is_fused(weight, bias) or is_supported(bias.detach())


def _supports_side(side: PreconditionerInput) -> bool:
    X, fisher, _ = side
    if not is_supported_matrix(X):
        return False
    if fisher is None:
        return True
    W_t = fisher.W_t
    return W_t.dtype is X.dtype and W_t.is_contiguous() and W_t.shape[1] == X.shape[1]


def preconditioned_step(
    layers: Sequence[AffineLayer],
    inputs: Sequence[PreconditionerInput],
    derivatives: Sequence[PreconditionerInput],
    lr: float,
    max_change: float,
) -> list[StepResult]:
    sides = [side for pair in zip(inputs, derivatives, strict=True) for side in pair]
    # The workspace: H, lengths and traces of each side, then scratch that the layers share.
    used, scratch_size = 0, 0
    offsets: list[tuple[int, int, int]] = []
    for X, fisher, _ in sides:
        N, R = X.shape[0], 0 if fisher is None else len(fisher.W_t)
        H = used
        lengths = H + _aligned(N * R)
        traces = lengths + _aligned(N)
        used = traces + ALIGNMENT
        offsets.append((H, lengths, traces))
    for x, y in zip(inputs, derivatives, strict=True):
        N, R = x.X.shape[0], 0 if y.fisher is None else len(y.fisher.W_t)
        x_size = N * x.X.stride(0)
        scratch_size = max(scratch_size, x_size + N * y.X.stride(0), x_size + R * x.X.shape[1])
    workspace = inputs[0].X.new_empty(used + scratch_size)

    c_steps = ffi.new("Step[]", len(layers))
    updates: list[_CUpdate | None] = []
    parameters = []
    for i, (weight, bias, _, _) in enumerate(layers):
        step, x = c_steps[i], inputs[i]
        for c_side, side, places in (
            (step.x, x, offsets[2 * i]),
            (step.y, derivatives[i], offsets[2 * i + 1]),
        ):
            updates.append(_fill_side(c_side, side, workspace, places))
        step.N = x.X.shape[0]
        step.W, step.stride, step.columns = _floats(weight), weight.stride(0), x.X.shape[1]
        parameters.append(weight)
        if bias is not None:
            parameters.append(bias)
            if not is_fused(weight, bias):
                step.b = _floats(bias)
                step.columns -= 1

    lib.preconditioned_step(c_steps, len(layers), _floats(workspace, used), lr, max_change)

    increment_version(parameters)  # so that autograd notices a backward pass through the old values
    results = [None if update is None else update.result() for update in updates]
    return [StepResult(bool(c_steps[i].limited), results[2 * i], results[2 * i + 1]) for i in range(len(layers))]


def _fill_side(
    c_side: Any, side: PreconditionerInput, workspace: Tensor, offsets: tuple[int, int, int]
) -> _CUpdate | None:
    X, fisher, _ = side
    c_side.X, c_side.D, c_side.stride = _floats(X), X.shape[1], X.stride(0)
    H, lengths, traces = offsets
    c_side.H, c_side.lengths, c_side.traces = (_floats(workspace, at) for at in (H, lengths, traces))
    if fisher is None:
        return None
    c_side.W, c_side.two_minus_e, c_side.R = _floats(fisher.W_t), _floats(fisher.two_minus_e), len(fisher.W_t)
    if side.update is None:
        return None
    update = _CUpdate(side)
    c_side.update = update.record
    return update


def supports_update_fisher(side: PreconditionerInput) -> bool:
    return _supports_side(side)


def update_fisher(inputs: Sequence[PreconditionerInput]) -> list[UpdatedFisher]:
    results = []
    for side in inputs:
        X, fisher, _ = side
        assert fisher is not None
        H = torch.mm(X, fisher.W_t.t())
        tr_XX = float(torch.linalg.vector_norm(X, dtype=torch.float64).square())
        update = _CUpdate(side)
        N, D = X.shape
        lib.update_fisher(
            update.record, _floats(X), N, D, X.stride(0), _floats(H), _floats(fisher.W_t), len(fisher.W_t), tr_XX
        )
        results.append(update.result())
    return results


class _CUpdate:
    """The C record of an update, and the tensors whose addresses it holds."""

    def __init__(self, side: PreconditionerInput) -> None:
        _, fisher, update = side
        assert fisher is not None
        assert update is not None
        W_t, _, self._d_t, rho_t = fisher
        self._state = FisherState(torch.empty_like(W_t), W_t.new_empty(len(W_t)), torch.empty_like(self._d_t), 0.0)
        self.record = ffi.new("FisherUpdate *")
        record = self.record
        record.d_t, record.rho_t = ffi.cast("double *", self._d_t.data_ptr()), rho_t
        record.alpha, record.eta = update
        record.epsilon, record.delta = EPSILON, DELTA
        record.condition_threshold, record.tolerance = CONDITION_THRESHOLD, ORTHONORMALITY_TOLERANCE
        record.W_1, record.two_minus_e = _floats(self._state.W_t), _floats(self._state.two_minus_e)
        record.d_1 = ffi.cast("double *", self._state.d_t.data_ptr())

    def result(self) -> UpdatedFisher:
        """The updated estimate, once C has filled in the record.

        Raises:
            FloatingPointError: X holds values that are not finite, or whose squares are not.
            MemoryError: there was no memory for the update.
        """
        status = self.record.status
        if status == lib.FISHER_NOT_FINITE:
            raise not_finite_error()
        if status == lib.FISHER_OUT_OF_MEMORY:
            raise MemoryError("natural gradient: no memory to update a Fisher estimate")
        if status == lib.FISHER_NO_CONVERGENCE:
            raise FloatingPointError("natural gradient: the eigenvalues of Z_t did not converge")
        state = self._state._replace(rho_t=self.record.rho_1)
        return UpdatedFisher(state, bool(self.record.needs_reorthogonalizing))
