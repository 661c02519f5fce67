"""Helpers of the benchmarks of `make bench`: measuring in turn, and figures with limits.

A figure is usually a ratio of two times that are measured in turn, in one process or in processes started one after the
other, so that other load on the machine affects both.
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
    """A measured quantity.

    Attributes:
        name: description of the quantity.
        values: one value per repetition.
        limit: maximum of their median; None for no limit.
        unit: unit; empty for a ratio.
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
        """Returns the cells of a table row: name, median, spread, limit and verdict."""
        unit = f" {self.unit}" if self.unit else ""
        limit = "" if self.limit is None else f"{self.limit:g}{unit}"
        spread = f"{min(self.values):.3g} – {max(self.values):.3g}"
        verdict = "" if self.limit is None else "kept" if self.kept else "**missed**"
        return [self.name, f"{self.median:.3g}{unit}", spread, limit, verdict]


def in_turn(measurements: Mapping[str, Callable[[], float]], repetitions: int = REPETITIONS) -> dict[str, list[float]]:
    """Calls all measurements one after the other, several times; returns the values of each by name."""
    values: dict[str, list[float]] = {name: [] for name in measurements}
    for _ in range(repetitions):
        for name, measure in measurements.items():
            values[name].append(measure())
    return values


def as_a_job() -> None:
    """Gives this process a workflow job's memory settings, if needed by restarting it, and one thread."""
    if not LARGE_PAGES.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | LARGE_PAGES)
    tune_allocator()
    torch.set_num_threads(1)


def ratios(values: list[float], base: list[float]) -> list[float]:
    """Divides the values of two measurements, repetition by repetition."""
    return [t / b for t, b in zip(values, base, strict=True)]


def processor() -> str:
    """Returns the name of the processor and the number of cores."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def write(benchmark: str, title: str, figures: list[Figure]) -> None:
    """Prints the figures of a benchmark and writes them for `benchmarks/page.py`."""
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
