"""The reference backend: every function of `ngsgd.ops` with PyTorch's operators, for any device and float dtype.

It computes the same as the other backends up to rounding, and their tests compare with it. On a GPU it avoids reading
results: per-layer scalars stay on the device, and R x R matrices are fetched for all layers together.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ngsgd.ops.layout import aligned_empty, fused_matrix, is_on_host
from ngsgd.ops.records import (
    CONDITION_THRESHOLD,
    DELTA,
    EPSILON,
    NORM_FLOOR,
    TINY,
    AffineLayer,
    FisherState,
    ForwardBackwardResult,
    InputTransform,
    OutputLoss,
    PreconditionerInput,
    StepResult,
    UpdatedFisher,
    e_t,
    label_error,
    not_finite_error,
)

MAX_CACHED_LIMITS = 16  # a training job has two sizes of minibatches


def append_ones(x: Tensor) -> Tensor:
    N, D = x.shape
    rows = aligned_empty(N, D + 1, x)
    rows[:, :D] = x
    rows[:, D] = 1.0
    return rows


def two_norm(groups: Tensor, *, normalized: bool) -> tuple[Tensor, Tensor | None]:
    # One member after the other: the squares of all members would be as large as the input.
    first, *others = groups.unbind(-2)
    y = first * first
    for member in others:
        y.addcmul_(member, member)
    return normalize(y.sqrt_()) if normalized else (y.sqrt_(), None)


def two_norm_backward_(groups: Tensor, y: Tensor, scale: Tensor | None, dy: Tensor) -> Tensor:
    if scale is not None:
        dy = normalize_backward(y, scale, dy)
        y = y / scale.masked_fill(scale == 0.0, NORM_FLOOR**-0.5)[..., None]
    return groups.mul_((dy / y.clamp(min=TINY)).unsqueeze(-2))


def normalize(x: Tensor) -> tuple[Tensor, Tensor]:
    mean_square = torch.linalg.vecdot(x, x) / x.shape[-1]
    scale = mean_square.clamp(min=NORM_FLOOR).rsqrt_()
    y = x * scale[..., None]
    return y, scale.masked_fill_(mean_square < NORM_FLOOR, 0.0)


def normalize_backward(y: Tensor, scale: Tensor, dy: Tensor) -> Tensor:
    floored = scale == 0.0
    along = (torch.linalg.vecdot(dy, y) / y.shape[-1]).masked_fill_(floored, 0.0)
    factor = scale.masked_fill(floored, NORM_FLOOR**-0.5)
    return torch.addcmul(dy, y, along[..., None], value=-1).mul_(factor[..., None])


@torch.no_grad()  # the derivatives are computed here; a graph of them would only take memory
def forward_backward(
    x: Tensor,
    layers: Sequence[AffineLayer],
    transform: InputTransform,
    output: OutputLoss,
) -> ForwardBackwardResult:
    B = x.shape[0]
    if transform.positions is not None:
        x = x[:, transform.positions].flatten(2)
    if transform.weight is not None:
        x = nn.functional.linear(x, transform.weight, transform.bias)
    passed: list[_PassedLayer] = []
    for layer in layers:
        if layer.positions is not None:
            x = x.view(B, -1, x.shape[-1])[:, layer.positions]
        x = x.reshape(-1, layer.weight.shape[1])
        z = nn.functional.linear(x, layer.weight, layer.bias)
        y, scale = z, None
        if layer.norm is not None:
            y, scale = two_norm(_groups(z, layer.norm.k), normalized=layer.norm.normalized)
        passed.append(_PassedLayer(append_ones(x), z, y, scale))
        x = y
    logits = x if output.scales is None else x * output.scales
    # The objective needs float32.
    precise = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    log_posteriors = torch.log_softmax(precise, dim=1)
    labels = output.labels
    num_classes = logits.shape[1]
    # On a GPU the check would wait for the device, which reports such a label itself.
    if is_on_host(labels) and bool(((labels < 0) | (labels >= num_classes)).any()):
        raise label_error(num_classes)
    loss = -log_posteriors.gather(1, labels[:, None]).sum()
    correct = (logits.argmax(dim=1) == labels).sum()

    dz = log_posteriors.exp_()
    dz.scatter_add_(1, labels[:, None], dz.new_full((1, 1), -1.0).expand(len(labels), 1))
    if output.scales is not None:
        dz *= output.scales
    dz = dz.to(logits.dtype)
    rows: list[tuple[Tensor, Tensor]] = []
    dy = dz
    for depth in reversed(range(len(layers))):
        layer, (inputs, z, y, scale) = layers[depth], passed[depth]
        dz = dy
        if layer.norm is not None:
            dz = two_norm_backward_(_groups(z, layer.norm.k), y, scale, dy).view(z.shape)
        rows.append((inputs, dz))
        if depth:
            dy = _input_derivative(dz, layer, passed[depth - 1].y, B)
    return ForwardBackwardResult(loss, correct, rows[::-1])


class _PassedLayer(NamedTuple):
    """The arrays of a layer that the backward pass needs: its rows, outputs, norms and their scales."""

    rows: Tensor
    z: Tensor
    y: Tensor
    scale: Tensor | None


def _groups(z: Tensor, k: int) -> Tensor:
    return z.view(len(z), k, -1)


def _input_derivative(dz: Tensor, layer: AffineLayer, below: Tensor, B: int) -> Tensor:
    """The derivative with respect to the output of the layer below, which has the shape of `below`."""
    dx = dz @ layer.weight
    if layer.positions is None:
        return dx.view(below.shape)
    dy = torch.zeros_like(below).view(B, -1, below.shape[1])
    dy.index_add_(1, layer.positions.flatten(), dx.view(B, -1, below.shape[1]))
    return dy.view(below.shape)


class _Measured(NamedTuple):
    """One side of a step, with what is known of X^ without forming it.

    Attributes:
        side: the rows and their Fisher estimate.
        H: (N, R), X W_t^T; None for X^ = X.
        lengths: (N,), the 2-norms of the rows of X^.
        traces: (2,), tr(X X^T) and tr(X^ X^^T); both 1 for X^ = X, so that gamma is 1 however large the rows are.
    """

    side: PreconditionerInput
    H: Tensor | None
    lengths: Tensor
    traces: Tensor


def _measure(side: PreconditionerInput) -> _Measured:
    X, fisher, _ = side
    square = torch.linalg.vecdot(X, X)
    if fisher is None:
        return _Measured(side, None, square.sqrt(), X.new_ones(2))
    H = torch.mm(X, fisher.W_t.t())
    # |x^|^2 = |x|^2 - sum_r (2 - e_r) h_r^2
    rest = (square - torch.mv(H.square(), fisher.two_minus_e)).clamp_(min=0.0)
    return _Measured(side, H, rest.sqrt(), torch.stack((square.sum(), rest.sum())))


def preconditioned_step(
    layers: Sequence[AffineLayer],
    inputs: Sequence[PreconditionerInput],
    derivatives: Sequence[PreconditionerInput],
    lr: float,
    max_change: float,
) -> list[StepResult]:
    places: defaultdict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
    for i, layer in enumerate(layers):
        places[layer.weight.device, layer.weight.dtype].append(i)
    limited: dict[int, bool | Tensor] = {}
    sides: dict[int, tuple[_Measured, _Measured]] = {}
    for group in places.values():
        if max_change == 0.0 and all(inputs[i].fisher is derivatives[i].fisher is None for i in group):
            for i in group:
                _subtract(layers[i], derivatives[i].X, inputs[i].X, lr)
                limited[i] = False
            continue
        sides |= {i: (_measure(inputs[i]), _measure(derivatives[i])) for i in group}
        steps = _step_sizes([sides[i] for i in group], lr, max_change)
        for i, (step, is_limited) in zip(group, steps, strict=True):
            _apply_step(layers[i], *sides[i], step)
            limited[i] = is_limited
    due = [(i, side) for i in sorted(sides) for side in (0, 1) if sides[i][side].side.update is not None]
    updated = dict(zip(due, _update_fisher([sides[i][side] for i, side in due]), strict=True))
    return [StepResult(limited[i], updated.get((i, 0)), updated.get((i, 1))) for i in range(len(layers))]


def _step_sizes(
    sides: Sequence[tuple[_Measured, _Measured]], lr: float, max_change: float
) -> Iterable[tuple[float | Tensor, bool | Tensor]]:
    """For each layer s = lr gamma_x gamma_y, as far as max-change allows, and whether it limits the step."""
    traces = torch.cat([traces for x, y in sides for traces in (x.traces, y.traces)]).view(-1, 2, 2)
    step = gamma(*traces.unbind(2)).prod(dim=1).mul_(lr)
    limited: Iterable[Any] = itertools.repeat(False, len(sides))
    if max_change > 0.0:
        change = step * torch.stack([torch.dot(x.lengths, y.lengths) for x, y in sides])
        limit = _change_limit(tuple(len(x.lengths) for x, _ in sides), max_change, step)
        step = step * (limit / change).clamp_(max=1.0)
        limited = change > limit
    if is_on_host(step):  # Python's numbers are faster than tensors there
        return zip(step.tolist(), limited.tolist() if isinstance(limited, Tensor) else limited, strict=True)
    return zip(step, limited, strict=True)


_limits: dict[tuple[tuple[int, ...], float, torch.device, torch.dtype], Tensor] = {}


def _change_limit(num_rows: tuple[int, ...], max_change: float, like: Tensor) -> Tensor:
    """max_change N for each layer; cached, because copying numbers to a GPU waits for it."""
    key = (num_rows, max_change, like.device, like.dtype)
    limit = _limits.get(key)
    if limit is None:
        if len(_limits) > MAX_CACHED_LIMITS:
            _limits.clear()
        limit = _limits[key] = like.new_tensor([max_change * N for N in num_rows])
    return limit


def gamma(before: Tensor, after: Tensor) -> Tensor:
    """gamma = sqrt(tr(X X^T) / tr(X^ X^^T)), and 1 where the denominator is 0."""
    return torch.where(after == 0, 1.0, before / after).sqrt_()


def _apply_step(layer: AffineLayer, x: _Measured, y: _Measured, step: float | Tensor) -> None:
    """W,b <- W,b - step Y^^T X^."""
    X_hat = _materialize(x)
    if isinstance(step, Tensor):
        X_hat, step = X_hat * step, 1.0
    Y, D_in = y.side.X, X_hat.shape[1]
    N, D_out = Y.shape
    if y.H is not None and y.side.fisher is not None and N * D_out > D_in * (N + D_out):
        # Y^^T X^ = Y^T X^ - W^T (H^T X^), where that is less work than forming Y^.
        _subtract(layer, Y, X_hat, step)
        _subtract(layer, y.side.fisher.W_t, torch.mm(y.H.t(), X_hat), -step)
    else:
        _subtract(layer, _materialize(y), X_hat, step)


def _materialize(measured: _Measured) -> Tensor:
    (X, fisher, _), H, _, _ = measured
    return X if H is None or fisher is None else x_hat(X, H, fisher.W_t)


def x_hat(X: Tensor, H: Tensor, W_t: Tensor) -> Tensor:
    """X^ = X - H W_t (N, D)."""
    return torch.addmm(X, H, W_t, alpha=-1, out=aligned_empty(X.shape[0], X.shape[1], X))


def _subtract(layer: AffineLayer, Y: Tensor, X: Tensor, step: float) -> None:
    """W,b <- W,b - step Y^T X; where X has no column of ones, they are taken to follow."""
    weight, bias = layer.weight, layer.bias
    D_in = weight.shape[1]
    has_ones = X.shape[1] > D_in
    if bias is not None and has_ones and (fused := fused_matrix(weight, bias)) is not None:
        fused.addmm_(Y.t(), X, alpha=-step)
        return
    weight.addmm_(Y.t(), X[:, :D_in], alpha=-step)
    if bias is None:
        return
    if has_ones:
        bias.addmv_(Y.t(), X[:, D_in], alpha=-step)
    else:
        bias.sub_(Y.sum(dim=0), alpha=step)


def update_fisher(inputs: Sequence[PreconditionerInput]) -> list[UpdatedFisher]:
    # A single update needs tr(X X^T) alone, in double precision.
    measured = []
    for side in inputs:
        tr_XX = torch.linalg.vector_norm(side.X, dtype=torch.float64).square()
        measured.append(_measure(side)._replace(traces=tr_XX[None]))
    return _update_fisher(measured)


class _Products(NamedTuple):
    """The products of an update over the minibatch: J_t (R, D), K_t and L_t (R, R), and the 0-d trace tr(X X^T)."""

    J_t: Tensor
    K_t: Tensor
    L_t: Tensor
    trace: Tensor


class _Solution(NamedTuple):
    """The part of an update in the R dimensions of the estimate: W_{t+1} = A_t (J_t + B_t W_t).

    Attributes:
        A_t: (R, R).
        B_t: (R,), the diagonal of a matrix.
        two_minus_e, d_1, rho_1, needs_reorthogonalizing: those of the updated estimate.
    """

    A_t: Tensor
    B_t: Tensor
    two_minus_e: Tensor
    d_1: Tensor
    rho_1: float
    needs_reorthogonalizing: bool


def _update_fisher(measured: Sequence[_Measured]) -> list[UpdatedFisher]:
    """F_{t+1} of each estimate; those of one device are fetched from it and sent back together."""
    updated: dict[int, UpdatedFisher] = {}
    places: defaultdict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
    for i, one in enumerate(measured):
        places[one.side.X.device, one.side.X.dtype].append(i)
    for group in places.values():
        products = [_products(measured[i]) for i in group]
        small = iter(_to_host([part for _, *parts in products for part in parts]))
        solutions = [solve_update(measured[i].side, next(small), next(small), next(small)) for i in group]
        factors = iter(
            _to_device([f for s in solutions for f in (s.A_t, s.B_t, s.two_minus_e)], products[0].J_t.device)
        )
        for i, (J_t, *_), solution in zip(group, products, solutions, strict=True):
            A_t, B_t, two_minus_e = next(factors), next(factors), next(factors)
            fisher = measured[i].side.fisher
            assert fisher is not None
            W_1 = A_t @ torch.addcmul(J_t, B_t[:, None], fisher.W_t)
            state = FisherState(W_1, two_minus_e, solution.d_1, solution.rho_1)
            updated[i] = UpdatedFisher(state, solution.needs_reorthogonalizing)
    return [updated[i] for i in range(len(measured))]


def _products(measured: _Measured) -> _Products:
    (X, fisher, _), H, _, traces = measured
    assert fisher is not None
    assert H is not None
    J_t = H.T @ X
    L_t = H.T @ H if X.shape[0] < X.shape[1] else fisher.W_t @ J_t.T
    return _Products(J_t, J_t @ J_t.T, L_t, traces[0])


def _to_host(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The tensors in the host's memory; a GPU is waited for once."""
    if not tensors or is_on_host(tensors[0]):
        return tensors
    host = torch.cat([tensor.reshape(-1) for tensor in tensors]).cpu()
    return _split_like(host, tensors)


def _to_device(tensors: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """The tensors on a device, copied in one piece; from pinned memory, because other copies wait for the device."""
    if device.type != "cuda":
        return tensors
    host = torch.cat([tensor.reshape(-1) for tensor in tensors]).pin_memory()
    return _split_like(host.to(device, non_blocking=True), tensors)


def _split_like(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    pieces = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]


def solve_update(side: PreconditionerInput, K_t: Tensor, L_t: Tensor, tr_XX: Tensor) -> _Solution:
    """The part of an update in the R dimensions of the estimate, in double precision on the host.

    Args:
        side: the rows, their estimate F_t, and how it is updated.
        K_t, L_t: (R, R), on the host.
        tr_XX: tr(X X^T), 0-d, likewise.

    Raises:
        FloatingPointError: X holds values that are not finite, or whose squares are not.
    """
    X, fisher, update = side
    assert fisher is not None
    assert update is not None
    (_, _, d_t, rho_t), (alpha, eta), (N, D) = fisher, update, X.shape
    learn, keep = eta / N, 1.0 - eta
    kept = keep * (d_t + rho_t)  # D'_t
    inv_sqrt_e = e_t(d_t, rho_t, alpha, D).rsqrt()

    Z_t = (kept[:, None] + kept) * L_t.double() + learn * K_t.double()
    Z_t *= (learn * inv_sqrt_e)[:, None] * inv_sqrt_e
    Z_t.diagonal().add_(kept.square())
    tr_Z, trace = float(Z_t.numpy().trace()), float(tr_XX.numpy())
    # A value of X that is not finite is on the diagonals, too.
    if not (math.isfinite(tr_Z) and math.isfinite(trace)):
        raise not_finite_error()
    # Z_t grows with the fourth power of the data, so that it is scaled for the solver.
    values, U_t = torch.linalg.eigh(Z_t / max(1.0, tr_Z))

    R = len(values)
    c_t, c_floor = values.flip(0) * max(1.0, tr_Z), (rho_t * keep) ** 2  # from the largest
    sqrt_c = c_t.clamp(min=c_floor).sqrt()
    roots = sqrt_c.numpy()
    largest, smallest = float(roots[0]), float(roots[-1])
    rho_1 = float((learn * trace + keep * (D * rho_t + d_t.numpy().sum()) - roots.sum()) / (D - R))
    floor = max(EPSILON, DELTA * largest)
    d_1 = (sqrt_c - rho_1).clamp(min=floor)
    rho_1 = max(rho_1, floor)
    e_1 = e_t(d_1, rho_1, alpha, D)
    A_t = (learn * e_1.sqrt() / sqrt_c)[:, None] * U_t.mT.flip(0) * inv_sqrt_e
    B_t = keep / learn * (d_t + rho_t)
    ill_conditioned = bool((c_t.numpy() < c_floor).any()) or largest**2 > CONDITION_THRESHOLD * smallest**2
    return _Solution(A_t.to(X.dtype), B_t.to(X.dtype), (2.0 - e_1).to(X.dtype), d_1, rho_1, ill_conditioned)
