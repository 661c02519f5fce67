"""Measures reading of examples: python benchmarks/examples.py.

The time to read, shuffle and gather the minibatches of an archive is compared with a copy of the same bytes and with
the fastest training step (plain SGD, p-norm 400/80). The memory of a job is measured on a small and on a large archive.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import commands
import numpy as np
import torch
from figures import Figure, as_a_job, in_turn, ratios, write
from start import prepare
from step import network, step, timed

from ngsgd.data.egs import minibatches, open_archive, record_type
from ngsgd.data.quantized import encode
from ngsgd.training.run import Run

NUM_EXAMPLES, CONTEXT, DIM, MINIBATCH = 40_000, (7, 6), 13, 128
FEW, MANY = 4_000, 64_000  # numbers of examples; one takes 1.1 kB with the default network


def archive(path: Path, bits: int) -> None:
    rng = np.random.default_rng(0)
    records = np.zeros(NUM_EXAMPLES, record_type(8, CONTEXT, DIM, bits))
    features = rng.normal(size=(NUM_EXAMPLES, sum(CONTEXT) + 8, DIM)).astype(np.float32)
    if bits == 32:
        records["features"] = features
    else:
        records["features"], records["low"], records["step"] = encode(features, bits)
    np.save(path, records)


def reading(path: Path) -> Callable[[], float]:
    """Measures the seconds per minibatch of reading an archive."""

    def measure() -> float:
        started = time.perf_counter()
        count = sum(1 for _ in minibatches(open_archive(path), 3, CONTEXT, CONTEXT, MINIBATCH, 0))
        return (time.perf_counter() - started) / count

    return measure


def copying() -> Callable[[], float]:
    """Measures the seconds per minibatch of copying its features."""
    source = np.random.default_rng(0).normal(size=(NUM_EXAMPLES, sum(CONTEXT) + 1, DIM)).astype(np.float32)
    target = np.empty_like(source)

    def measure() -> float:
        started = time.perf_counter()
        np.copyto(target, source)
        return (time.perf_counter() - started) / (NUM_EXAMPLES / MINIBATCH)

    return measure


def anonymous_memory(folder: Path) -> float:
    """Returns the peak anonymous memory of a job, in MB."""
    command = [sys.executable, "-m", "ngsgd", *commands.train(Run.open(folder), 0, 1)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        except OSError:
            break
        peak = max([peak, *(int(kib) for kib in re.findall(r"RssAnon:\s*(\d+) kB", status))])
        time.sleep(0.01)
    if process.wait():
        raise SystemExit(f"the job failed: {process.stderr.read().decode() if process.stderr else ''}")
    return peak * 1024 / 1e6


if __name__ == "__main__":
    as_a_job()
    with tempfile.TemporaryDirectory() as name:
        paths = {bits: Path(name, f"{bits}.npy") for bits in (32, 16, 8)}
        for bits, path in paths.items():
            archive(path, bits)
        model = network(400, 80)
        with model.training_layout():
            measurements = {"copy": copying(), "step": timed(step(model, "sgd", MINIBATCH, torch.float32), 100)}
            times = in_turn({**measurements, **{str(bits): reading(path) for bits, path in paths.items()}})
        figures = [Figure("minibatches / copy of their bytes, 32 bits", ratios(times["32"], times["copy"]))]
        figures += [
            Figure(f"minibatches / step of SGD at 400/80, {bits} bits", ratios(times[str(bits)], times["step"]), 0.05)
            for bits in paths
        ]
        for num_examples in (FEW, MANY):
            folder = Path(name, str(num_examples))
            prepare(folder, num_examples)
            memory = [anonymous_memory(folder) for _ in range(5)]
            figures.append(Figure(f"anonymous memory of a job, {num_examples:,} examples", memory, 350.0, "MB"))
    write("examples", "Reading examples", figures)
