"""What the benchmarks of `make bench` share: things measured in turn, and figures, each with its own limit.

A figure is a ratio of two things measured in one process, or in processes started in turn: what else the machine does
meets both.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ngsgd.files import write_text
from ngsgd.memory import LARGE_PAGES, tune_allocator

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results/bench"
REPETITIONS = 7


@dataclass(frozen=True)
class Figure:
    """A measure of several repetitions.

    Attributes:
        name: of what.
        values: one a repetition.
        limit: that their median is to keep; None where there is none.
        unit: empty for a ratio.
    """

    name: str
    values: list[float]
    limit: float | None = None
    unit: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def kept(self) -> bool:
        return self.limit is None or self.median <= self.limit

    def row(self) -> list[str]:
        """Name, median, spread, limit and verdict, for a table."""
        unit = f" {self.unit}" if self.unit else ""
        limit = "" if self.limit is None else f"{self.limit:g}{unit}"
        spread = f"{min(self.values):.3g} – {max(self.values):.3g}"
        verdict = "" if self.limit is None else "kept" if self.kept else "**missed**"
        return [self.name, f"{self.median:.3g}{unit}", spread, limit, verdict]


def in_turn(things: Mapping[str, Callable[[], float]], repetitions: int = REPETITIONS) -> dict[str, list[float]]:
    """What each thing measures, several times, each time one after the other."""
    taken: dict[str, list[float]] = {name: [] for name in things}
    for _ in range(repetitions):
        for name, measure in things.items():
            taken[name].append(measure())
    return taken


def as_a_job() -> None:
    """Has this process, from its start, the memory that a job of the workflow has, and one thread."""
    if not LARGE_PAGES.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | LARGE_PAGES)
    tune_allocator()
    torch.set_num_threads(1)


def ratios(taken: list[float], base: list[float]) -> list[float]:
    """Repetition by repetition."""
    return [t / b for t, b in zip(taken, base, strict=True)]


def processor() -> str:
    """What this machine computes with."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def write(benchmark: str, title: str, figures: list[Figure]) -> None:
    """Prints a benchmark's figures and leaves them for the page."""
    print(f"{title} ({processor()})")
    for figure in figures:
        print("  " + "  ".join(cell for cell in figure.row() if cell), flush=True)
    record = {
        "title": title,
        "machine": processor(),
        "python": platform.python_version(),
        "figures": [asdict(figure) for figure in figures],
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_text(RESULTS / f"{benchmark}.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
