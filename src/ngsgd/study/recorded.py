"""Compares the runs of a grid with recorded results of another program with the same settings."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from ngsgd.study.analysis import OBJECTIVES

COLUMNS = ("method", "jobs", "epochs", *OBJECTIVES.values())


class Recorded(NamedTuple):
    """Recorded results and their source.

    Attributes:
        table: table with the columns `COLUMNS`.
        source: description of the source.
    """

    table: pd.DataFrame
    source: str


def read(path: str) -> Recorded:
    """Reads tab-separated columns `COLUMNS` with a header; the line before it, after a "#", describes the source.

    Raises:
        ValueError: the first line or the columns are missing or different.
    """
    with open(path, encoding="utf-8") as file:
        source = file.readline()
        table = pd.read_csv(file, sep="\t") if source.startswith("#") else pd.DataFrame()
    if tuple(table.columns) != COLUMNS:
        raise ValueError(f"{path}: expected a line '# source' and the columns {', '.join(COLUMNS)}")
    return Recorded(table, source[1:].strip())


def compare_recorded(courses: pd.DataFrame, recorded: pd.DataFrame) -> pd.DataFrame:
    """Interpolates our learning curves at the points of the recorded results.

    Args:
        courses: learning curves of a grid, see `analysis.curves`.
        recorded: table of `read`; its epochs are data processed by all jobs.

    Returns:
        One row per recorded point and seed: method, jobs, epochs, seed, our objectives, and the recorded ones with the
        suffix ``_recorded``.
    """
    rows = []
    for point in recorded.to_dict("records"):
        subset = courses[(courses["method"] == point["method"]) & (courses["jobs"] == point["jobs"])]
        for seed, course in subset.groupby("seed"):
            row = {"method": point["method"], "jobs": point["jobs"], "epochs": point["epochs"], "seed": seed}
            for objective in OBJECTIVES.values():
                row[objective] = float(np.interp(point["epochs"], course["epochs"], course[objective]))
                row[f"{objective}_recorded"] = point[objective]
            rows.append(row)
    return pd.DataFrame(rows)
