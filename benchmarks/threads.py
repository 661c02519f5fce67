"""Compares numbers of jobs and threads per job on this machine: python benchmarks/threads.py.

Several processes run the same training step at the same time on two cores. Their total frames per second are compared
with those of one job with one thread.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from figures import ROOT, Figure, in_turn, ratios, write

WAYS = ((1, 1), (1, 2), (2, 1), (2, 2))  # jobs, threads per job
SIZES = ((400, 80), (2000, 250))
PROGRAM = """\
import sys, time, torch
sys.path.insert(0, "benchmarks")
from step import network, step
from ngsgd.memory import tune_allocator
tune_allocator()
torch.set_num_threads(int(sys.argv[1]))
model = network(int(sys.argv[2]), int(sys.argv[3]))
with model.training_layout():
    run = step(model, "ng-sgd", 128, torch.float32)
    for _ in range(20):
        run()
    print("ready", flush=True)
    sys.stdin.readline()
    count, end = 0, time.perf_counter() + 3.0
    while time.perf_counter() < end:
        run()
        count += 1
print(count * 128 / 3.0)
"""


def frames_a_second(jobs: int, threads: int, pnorm: tuple[int, int]) -> Callable[[], float]:
    def measure() -> float:
        command = [sys.executable, "-c", PROGRAM, str(threads), *map(str, pnorm)]
        processes = [
            subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(jobs)
        ]
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        # All processes are ready, so they measure at the same time.
        return sum(float(process.communicate()[0]) for process in _start_measuring(processes))

    return measure


def _start_measuring(processes: list[subprocess.Popen[str]]) -> list[subprocess.Popen[str]]:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return processes


if __name__ == "__main__":
    figures = []
    for pnorm in SIZES:
        rates = in_turn({f"{j} x {t}": frames_a_second(j, t, pnorm) for j, t in WAYS}, 5)
        figures += [
            Figure(
                f"frames a second at {pnorm[0]}/{pnorm[1]}: {jobs} jobs of {threads} threads / 1 of 1",
                ratios(rates[f"{jobs} x {threads}"], rates["1 x 1"]),
            )
            for jobs, threads in WAYS[1:]
        ]
    write("threads", "Jobs and threads on two cores", figures)
