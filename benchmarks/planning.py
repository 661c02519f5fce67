"""Measures how long Snakemake takes to plan 2,500 iterations of 16 jobs, and 10: python benchmarks/planning.py.

It uses the default corpus with small archives. No model is trained.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from figures import ROOT, Figure, ratios, write

JOBS = 16
REPETITIONS = 5
EXPANDED = 8 * 11  # expanded archives of the configuration below


def plan(num_iters: int) -> tuple[float, float]:
    """Returns the seconds of a dry run after the plan is written, and the peak memory of all calls so far in GiB."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        settings = {"num_jobs_initial": JOBS, "num_jobs_final": JOBS, "samples_per_iter": 500}
        epochs = (num_iters + 0.01) * JOBS / EXPANDED
        config.write_text(json.dumps(settings | {"num_epochs": epochs, "runs": {"run": {}}}))
        command = [Path(sys.executable).parent / "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder]

        def snakemake(*arguments: str) -> None:
            subprocess.run([*command, *arguments, "--configfile", config], check=True, capture_output=True, cwd=folder)

        snakemake("results/run/plan.tsv")
        rows = len((Path(folder) / "results/run/plan.tsv").read_text().splitlines()) - 1
        if rows != num_iters * JOBS:
            raise SystemExit(f"the plan has {rows} jobs, not {num_iters} x {JOBS}")
        started = time.perf_counter()
        snakemake("--dry-run", "--quiet")
        seconds = time.perf_counter() - started
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


if __name__ == "__main__":
    short, long, memory = [], [], []
    for _ in range(REPETITIONS):
        short.append(plan(10)[0])
        seconds, gib = plan(2500)
        long.append(seconds)
        memory.append(gib)
    write(
        "planning",
        f"Planning 2,500 iterations of {JOBS} jobs (a dry run)",
        [
            Figure("dry run", long, 120.0, "s"),
            Figure("dry run / that of 10 iterations", ratios(long, short)),
            Figure("memory", memory, 2.0, "GiB"),
        ],
    )
