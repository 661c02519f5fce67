"""Writes the results of `make bench` into docs/performance.md: python benchmarks/page.py.

Only the text between the marks is replaced. Exits with status 1 if a figure misses its limit.
"""

from __future__ import annotations

import json
import sys

from figures import RESULTS, ROOT, Figure

from ngsgd.files import write_text

PAGE = ROOT / "docs/performance.md"
BEGIN, END = "<!-- generated: make bench -->", "<!-- end -->"
ORDER = ("step", "threads", "examples", "start", "averaging", "iteration", "planning")


def table(benchmark: str) -> tuple[str, list[Figure]]:
    record = json.loads((RESULTS / f"{benchmark}.json").read_text(encoding="utf-8"))
    figures = [Figure(**figure) for figure in record["figures"]]
    rows = "\n".join(f"| {' | '.join(figure.row())} |" for figure in figures)
    head = f"| {record['title']} | median | spread | limit | |\n| --- | --- | --- | --- | --- |"
    return f"{head}\n{rows}\n\n{record['machine']}; Python {record['python']}.\n", figures


if __name__ == "__main__":
    tables = [table(benchmark) for benchmark in ORDER if (RESULTS / f"{benchmark}.json").exists()]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    write_text(PAGE, f"{before}{BEGIN}\n\n{chr(10).join(text for text, _ in tables)}\n{END}{after}")
    missed = [figure for _, figures in tables for figure in figures if not figure.kept]
    for figure in missed:
        print(f"missed: {' '.join(figure.row())}", file=sys.stderr)
    sys.exit(bool(missed))
