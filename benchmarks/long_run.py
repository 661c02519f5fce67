"""Compares the gaps between iterations late and early in a long run: python benchmarks/long_run.py [ITERATIONS].

A run has many short iterations of two jobs on this machine, about two seconds each. The gap from the end of an
iteration's last job to the start of the next iteration's first job is compared between the first and the last fifty
iterations. This benchmark is not part of `make bench`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from figures import ROOT
from turnaround import progress, told

ENDS = 50  # number of gaps at the start and at the end that are compared


def gaps(num_iters: int) -> list[float]:
    with tempfile.TemporaryDirectory() as name:
        config = Path(name) / "config.json"
        settings = {
            "num_jobs_initial": 2, "num_jobs_final": 2, "samples_per_iter": 200, "num_hidden_layers": 3,
            "pnorm_input_dim": 200, "pnorm_output_dim": 40, "num_valid_frames": 500, "num_train_subset_frames": 500,
            "runs": {"run": {}},
        }  # fmt: skip
        expanded = 8 * 27  # number of archives times label positions
        config.write_text(json.dumps(settings | {"num_epochs": (num_iters + 0.01) * 2 / expanded}))
        subprocess.run(
            [Path(sys.executable).parent / "snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "2",
             "results/run/final.safetensors", "--configfile", config],
            cwd=name, check=True, capture_output=True,
        )  # fmt: skip
        times = progress(Path(name, "results/run"))
    if len(times) != num_iters:
        raise SystemExit(f"the run has {len(times)} iterations, not {num_iters}")
    ends = {x: max(end for _, end in jobs) for x, jobs in times.items()}
    return [min(start for start, _ in times[x + 1]) - ends[x] for x in sorted(times)[:-1]]


if __name__ == "__main__":
    seconds = gaps(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
    first, last = seconds[:ENDS], seconds[-ENDS:]
    print(f"between iterations, s: first {ENDS} {told(first)}, last {ENDS} {told(last)}")
    print(f"last / first: {statistics.median(last) / statistics.median(first):.2f}")
