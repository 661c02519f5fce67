"""Measures the end of an iteration of 16 jobs with models of 20 million parameters: python benchmarks/averaging.py.

It is compared with reading these models once; both read from the page cache.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from figures import Figure, in_turn, ratios, write

from ngsgd.network.storage import FORMAT, Header, read_model, write_model
from ngsgd.training.average import end_iteration
from ngsgd.training.job_record import JobRecord
from ngsgd.training.model_mean import average_arrays

JOBS, LAYERS, WIDTH = 16, 5, 2000
REPETITIONS = 5


def make(folder: Path) -> tuple[Path, list[Path]]:
    """Writes a model and the models of the jobs that started from it; returns their paths."""
    rng = np.random.default_rng(0)
    architecture = [{"kind": "affine", "name": f"affine{i}"} for i in range(LAYERS)]
    paths = []
    for n in range(JOBS + 1):
        arrays = {
            f"components.affine{i}.weight": rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) for i in range(LAYERS)
        }
        record = JobRecord(frames=1, log_probability=-1.0, train_accuracy=0.5, max_change_share={}, failure=None)
        job = {"iteration": 0, "job": n, "action": "average", **dataclasses.asdict(record)}
        history = {"iterations": []} | ({"job": job} if n else {})
        paths.append(folder / f"{n}.safetensors")
        write_model(paths[-1], arrays, Header(format=FORMAT, architecture=architecture, history=history))
    return paths[0], paths[1:]


def timed(run: Callable[[], object]) -> Callable[[], float]:
    def measure() -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    return measure


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        before, jobs = make(Path(name))

        def read() -> None:
            for path in jobs:
                read_model(path)

        def end() -> None:
            end_iteration(jobs, before, 1.0, Path(name, "out.safetensors"), Path(name, "report.json"))

        measurements = {"read": timed(read), "average": timed(lambda: average_arrays(jobs)), "end": timed(end)}
        for measure in measurements.values():
            measure()
        times = in_turn(measurements, REPETITIONS)
    write(
        "averaging",
        "Averaging 16 models of 20 million parameters",
        [
            Figure("reading them once", times["read"], unit="s"),
            Figure("averaging / reading once", ratios(times["average"], times["read"]), 0.6),
            Figure("whole end of the iteration / reading once", ratios(times["end"], times["read"]), 1.2),
        ],
    )
