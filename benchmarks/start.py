"""Measures the start-up time of commands beyond importing torch: python benchmarks/start.py.

Whole processes are compared with one that only imports torch: a job of a single minibatch (default network, 128
frames), the diagnostics of a model on 128 frames, and the averaging of four models.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import commands
import numpy as np
import yaml
from figures import ROOT, Figure, in_turn, write

from ngsgd.data.egs import record_type
from ngsgd.network.topology import initial_model
from ngsgd.training.plan import Job
from ngsgd.training.run import Run
from ngsgd.workflow.configuration import run_settings

CLASSES, DIM = 50, 13
LIMIT = 1.0  # seconds beyond `import torch`


def seconds(*arguments: str) -> Callable[[], float]:
    def measure() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        return time.perf_counter() - started

    return measure


def prepare(folder: Path, num_examples: int = 128) -> None:
    """Writes a run's folder with the files that one iteration of four jobs needs."""
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    settings = run_settings(config)["ng-sgd"]
    run = Run(folder, settings, folder / "data", folder / "egs")
    run.write(run.settings_file)
    rng = np.random.default_rng(0)
    dim = len(settings.splices()[0] or ()) * DIM
    transform = (rng.normal(size=(dim, dim)) / dim, np.zeros(dim))
    initial_model(settings.hidden_layers(), transform, np.full(CLASSES, 100), 0).save(run.model_file(0))
    run.archive_file(0).parent.mkdir(parents=True)
    for path, length, frames in (
        (run.archive_file(0), num_examples, 8),
        (run.valid_file, 128, 1),
        (run.train_subset_file, 128, 1),
    ):
        archive = np.zeros(length, record_type(frames, settings.context(), DIM))
        archive["features"] = rng.normal(size=archive["features"].shape)
        archive["labels"] = rng.integers(CLASSES, size=archive["labels"].shape)
        np.save(path, archive)
    rows = [Job(0, n, 0, 0, 0.01, 128, 1, n, "average") for n in range(1, 5)]
    run.plan_file.write_text("\n".join("\t".join(map(str, row)) for row in [Job._fields, *rows]) + "\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        run = Run.open(name)
        for n in range(1, 5):
            seconds("-m", "ngsgd", *commands.train(run, 0, n))()
        processes = {
            "import torch": ("-c", "import os, torch; os._exit(0)"),
            "a job of one minibatch": ("-m", "ngsgd", *commands.train(run, 0, 1)),
            "diagnostics": ("-m", "ngsgd", *commands.diagnose(run, 0)),
            "averaging": ("-m", "ngsgd", *commands.end_iteration(run, 0, 4)),
        }
        durations = in_turn({label: seconds(*command) for label, command in processes.items()})
    base = durations.pop("import torch")
    figures = [Figure("import torch", base, unit="s")]
    for label, times in durations.items():
        beyond = [t - b for t, b in zip(times, base, strict=True)]
        figures.append(Figure(f"{label}, whole process, beyond that", beyond, LIMIT, "s"))
    write("start", "Starting", figures)
