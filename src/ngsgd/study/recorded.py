"""The runs of a grid beside what another program came to with the same settings."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from ngsgd.study.analysis import OBJECTIVES

COLUMNS = ("method", "jobs", "epochs", *OBJECTIVES.values())


class Recorded(NamedTuple):
    """A table of what was recorded, and where it comes from.

    Attributes:
        table: see `read`.
        source: of the numbers, in words.
    """

    table: pd.DataFrame
    source: str


def read(path: str) -> Recorded:
    """Reads a table of tab-separated columns `COLUMNS` whose first line, after a "#", says where it comes from.

    Raises:
        ValueError: it has other columns.
    """
    with open(path, encoding="utf-8") as file:
        source = file.readline()
        table = pd.read_csv(file, sep="\t") if source.startswith("#") else pd.DataFrame()
    if tuple(table.columns) != COLUMNS:
        raise ValueError(f"{path}: expected a line '# source' and the columns {', '.join(COLUMNS)}")
    return Recorded(table, source[1:].strip())


def compare_recorded(courses: pd.DataFrame, recorded: pd.DataFrame) -> pd.DataFrame:
    """Ours at the places for which numbers are known.

    Args:
        courses: of a grid, see `analysis.curves`.
        recorded: see `read`; epochs are of data processed by all jobs.

    Returns:
        A row for each recorded one and each seed: the columns of both, those recorded with the suffix ``_recorded``.
    """
    rows = []
    for there in recorded.to_dict("records"):
        own = courses[(courses["method"] == there["method"]) & (courses["jobs"] == there["jobs"])]
        for seed, course in own.groupby("seed"):
            row = {"method": there["method"], "jobs": there["jobs"], "epochs": there["epochs"], "seed": seed}
            for objective in OBJECTIVES.values():
                row[objective] = float(np.interp(there["epochs"], course["epochs"], course[objective]))
                row[f"{objective}_recorded"] = there[objective]
            rows.append(row)
    return pd.DataFrame(rows)
