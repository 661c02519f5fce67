"""Compares an iteration of the workflow on one machine with its slowest job: python benchmarks/iteration.py.

Jobs take about five seconds, two at a time on two cores. An iteration is measured from the start of its first job to
the start of the next iteration's first job. This includes the averaging, Snakemake's own time, and the wait of the next
jobs for a core while models are scored.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from figures import ROOT, Figure, write
from turnaround import progress

SETTINGS = {
    "num_jobs_initial": 2, "num_jobs_final": 2, "samples_per_iter": 5000, "num_hidden_layers": 3,
    "pnorm_input_dim": 5000, "pnorm_output_dim": 500, "runs": {"run": {}},
}  # fmt: skip
ITERATIONS = 11


def iterations() -> dict[int, list[tuple[float, float]]]:
    """Trains a run and returns start and end of each job, by iteration."""
    with tempfile.TemporaryDirectory() as name:
        config = Path(name) / "config.json"
        epochs = (ITERATIONS + 0.01) * 2 / (8 * 2)  # expanded archives of this configuration: 8 times 2
        config.write_text(json.dumps(SETTINGS | {"num_epochs": epochs}))
        subprocess.run(
            [Path(sys.executable).parent / "snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "2",
             "results/run/final.safetensors", "--configfile", config],
            cwd=name, check=True, capture_output=True,
        )  # fmt: skip
        return progress(Path(name, "results/run"))


if __name__ == "__main__":
    times = iterations()
    starts = {x: min(start for start, _ in jobs) for x, jobs in times.items()}
    # From iteration 5 on the network has all its layers.
    measured = [x for x in sorted(times)[5:] if x + 1 in times]
    slowest = {x: max(end - start for start, end in times[x]) for x in measured}
    durations = {x: starts[x + 1] - starts[x] for x in measured}
    write(
        "iteration",
        "An iteration of the workflow",
        [
            Figure("slowest job", [slowest[x] for x in measured], unit="s"),
            Figure("iteration / its slowest job", [durations[x] / slowest[x] for x in measured], 1.25),
            Figure("iteration beyond its slowest job", [durations[x] - slowest[x] for x in measured], unit="s"),
        ],
    )
