"""Compares a training step with the matrix products of its affine layers: python benchmarks/step.py.

The network is the reference run's, with p-norms of several sizes. The products are those of all affine layers: forward,
derivative and gradient, into preallocated matrices, with one thread. They include the derivative of the features, which
training does not compute; for minibatches of 128 in float32, figures without it are given as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from figures import Figure, as_a_job, in_turn, ratios, write

from ngsgd import NGSGD, AcousticModel
from ngsgd.network.splices import parse_splice_indexes
from ngsgd.network.topology import HiddenLayers, initial_model, insert_hidden_layer

DIM, CLASSES, CONTEXT = 13, 144, 14
LIMITS = {("sgd", 400): None, ("ng-sgd", 400): 2.2, ("sgd", 2000): 1.12, ("ng-sgd", 2000): 1.45}
# Minimum seconds of a repetition, and of all repetitions. Repetitions are short and many, so that other load on the
# machine affects all measurements alike.
SECONDS, SECONDS_IN_ALL = 0.2, 4.0
LEAST_REPETITIONS = 5


def network(pnorm_input: int, pnorm_output: int) -> AcousticModel:
    splices = parse_splice_indexes("layer0/-2:-1:0:1:2 layer1/-2:1 layer2/-3:3")
    layers = HiddenLayers(splices, "pnorm", pnorm_input, pnorm_output, batchnorm=False)
    weight = np.random.default_rng(0).normal(size=(5 * DIM, 5 * DIM)) / (5 * DIM) ** 0.5
    model = initial_model(layers, (weight, np.zeros(5 * DIM)), np.ones(CLASSES, np.int64), 0)
    for _ in range(2):
        model = insert_hidden_layer(model, layers, 0)
    return model.train()


def products(
    pnorm_input: int, pnorm_output: int, size: int, dtype: torch.dtype, *, needed: bool = False
) -> Callable[[], None]:
    """Returns a function for one minibatch's matrix products of the affine layers: all, or only those of training."""
    shapes = [(4, 5 * DIM, pnorm_input), (2, 2 * pnorm_output, pnorm_input), (1, 2 * pnorm_output, pnorm_input)]
    layers = []
    for positions, d_in, d_out in [*shapes, (1, pnorm_output, CLASSES)]:
        X, Y = torch.randn(positions * size, d_in, dtype=dtype), torch.randn(positions * size, d_out, dtype=dtype)
        W = torch.randn(d_out, d_in, dtype=dtype)
        layers.append((X, Y, W, torch.empty_like(Y), torch.empty_like(X), torch.empty_like(W)))

    def run() -> None:
        for X, _, W, output, _, _ in layers:
            torch.mm(X, W.T, out=output)
        for depth, (X, Y, W, _, derivative, gradient) in reversed(list(enumerate(layers))):
            if depth or not needed:
                torch.mm(Y, W, out=derivative)
            torch.mm(Y.T, X, out=gradient)

    return run


def step(model: AcousticModel, method: str, size: int, dtype: torch.dtype) -> Callable[[], None]:
    """Returns a function that trains on the next minibatch, as a job does."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(8 * size, CONTEXT, DIM, generator=generator).split(size)
    labels = torch.randint(CLASSES, (8 * size,), generator=generator).split(size)
    optimizer = NGSGD(
        model, lr=1e-4, preconditioner="none" if method == "sgd" else "online", max_change_per_sample=None
    )
    count = 0

    def run() -> None:
        nonlocal count
        x, y = features[count % 8], labels[count % 8]
        count += 1
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            model.backpropagate(x, y)
        optimizer.step()

    return run


def timed(run: Callable[[], None], times: int) -> Callable[[], float]:
    def measure() -> float:
        started = time.perf_counter()
        for _ in range(times):
            run()
        return (time.perf_counter() - started) / times

    return measure


def compare(pnorm_input: int, pnorm_output: int, size: int, dtype: torch.dtype) -> list[Figure]:
    bare = {
        "products": products(pnorm_input, pnorm_output, size, dtype),
        "products that training needs": products(pnorm_input, pnorm_output, size, dtype, needed=True),
    }
    models = {method: network(pnorm_input, pnorm_output) for method in ("sgd", "ng-sgd")}
    with models["sgd"].training_layout(), models["ng-sgd"].training_layout():
        runs = {method: step(model, method, size, dtype) for method, model in models.items()}
        for run in (*bare.values(), *runs.values()):
            for _ in range(16):  # warm-up: at first the estimates are updated at every step
                run()
        once = timed(bare["products"], 4)()
        times = 4 * max(1, round(SECONDS / once / 4))  # estimates are updated at every fourth step
        repetitions = max(LEAST_REPETITIONS, round(SECONDS_IN_ALL / (times * once)))
        seconds = in_turn({name: timed(run, times) for name, run in (bare | runs).items()}, repetitions)
    setting = f"{pnorm_input}/{pnorm_output}, minibatch {size}, {str(dtype).removeprefix('torch.')}"
    return [
        Figure(
            f"{'SGD' if method == 'sgd' else 'NG-SGD'} / {base}, {setting}",
            ratios(seconds[method], seconds[base]),
            LIMITS[method, min(pnorm_input, 2000)] if base == "products" and dtype == torch.float32 else None,
        )
        for base in (bare if size == 128 and dtype == torch.float32 else ["products"])
        for method in runs
    ]


if __name__ == "__main__":
    as_a_job()
    dtypes = [torch.float32]
    if "avx512_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        dtypes.append(torch.bfloat16)
    figures = [
        figure
        for dtype in dtypes
        for pnorm in ((400, 80), (2000, 250), (5000, 500))
        for size in (128, 512)
        for figure in compare(*pnorm, size, dtype)
    ]
    write("step", "A training step", figures)
