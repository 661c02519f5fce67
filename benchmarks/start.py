"""What starting a job costs beyond importing torch: python benchmarks/start.py.

A job of a single minibatch (the default network, 128 frames), from the start of its process to its end, beside a
process that imports torch and ends; and the averaging of four models, which does without torch.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

from ngsgd.data.egs import record_type
from ngsgd.network.topology import initial_model
from ngsgd.procedure.plan import Job
from ngsgd.procedure.run import Run
from ngsgd.procedure.settings import run_settings

ROOT = Path(__file__).resolve().parent.parent
REPETITIONS = 7


def seconds(*arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


def prepare(folder: Path) -> None:
    """A run's folder with what one iteration of four jobs needs."""
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    schema = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())
    settings = run_settings(config, schema)["ng-sgd"]
    run = Run(folder, settings, folder / "data", folder / "egs")
    run.write()
    rng = np.random.default_rng(0)
    dim = len(settings.splices()[0] or ()) * 13
    transform = (rng.normal(size=(dim, dim)) / dim, np.zeros(dim))
    initial_model(settings.hidden_layers(), transform, np.full(50, 100), 0).save(run.model(0))
    archive = np.zeros(128, record_type(8, settings.context(), 13))
    archive["features"] = rng.normal(size=archive["features"].shape)
    run.archive(0).parent.mkdir(parents=True)
    np.save(run.archive(0), archive)
    rows = [Job(0, n, 0, 0, 0.01, 128, 1, n, "average") for n in range(1, 5)]
    run.plan.write_text("\n".join("\t".join(map(str, row)) for row in [Job._fields, *rows]) + "\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        commands = {
            "import torch": ("-c", "import torch"),
            "import numpy": ("-c", "import numpy"),
            "a job": ("-m", "ngsgd", "train", name, "0", "1"),
            "an averaging": ("-m", "ngsgd", "end-iteration", name, "0"),
        }
        for n in "1234":
            seconds("-m", "ngsgd", "train", name, "0", n)
        taken = {what: [seconds(*command) for _ in range(REPETITIONS)] for what, command in commands.items()}
    median = {what: statistics.median(times) for what, times in taken.items()}
    for what, times in taken.items():
        print(f"{what}: {median[what]:.2f} s ({min(times):.2f} - {max(times):.2f})")
    print(
        json.dumps(
            {
                "job beyond torch": median["a job"] - median["import torch"],
                "ratio": median["a job"] / median["import torch"],
            }
        )
    )
