"""What the runs of a grid show: their courses, speed-ups, and how much data one optimiser saves beside another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from ngsgd.study.grid import Experiment

SHARES = (0.8, 0.95)  # of the way from the end of the first epoch to the best, at which speed-ups are measured
OBJECTIVES = {"valid": "valid_log_probability", "train": "train_log_probability"}

Doubles = npt.NDArray[np.float64]


class Finish(NamedTuple):
    """What came of a run.

    Attributes:
        combination: of its last models, as ``combination.json`` has it.
        evaluation: of the final model, as ``evaluation.json`` has it.
    """

    combination: Mapping[str, Any]
    evaluation: Mapping[str, Any]


def curves(experiment: Experiment, tables: Mapping[str, pd.DataFrame], turnaround: float) -> pd.DataFrame:
    """The courses of all runs of a grid, one below the other.

    Args:
        experiment: the grid's.
        tables: the metrics of its runs, by name.
        turnaround: seconds from one iteration's end to the next one's begin.

    Returns:
        A row for each model. Columns method, jobs (0 where it grows), seed, epochs: data processed by all jobs;
        epochs_per_job: by a single one; minutes: on a cluster with a machine for each job, the slowest job, the
        averaging and the turn-around of each iteration summed up; valid_log_probability, train_log_probability.
    """
    parts = []
    for method, jobs, seed in experiment.points():
        table = tables[experiment.grid_run(method, jobs, seed)]
        epochs = table["epochs"].to_numpy(np.float64)
        share = np.diff(epochs) / table["jobs"].to_numpy(np.float64, na_value=np.nan)[:-1]
        seconds = table["seconds"].to_numpy(np.float64)[:-1] + turnaround
        parts.append(
            pd.DataFrame(
                {
                    "method": method,
                    "jobs": jobs,
                    "seed": seed,
                    "epochs": epochs,
                    "epochs_per_job": np.concatenate(([0.0], np.cumsum(share))),
                    "minutes": np.concatenate(([0.0], np.cumsum(seconds))) / 60.0,
                    **{column: table[column].to_numpy(np.float64) for column in OBJECTIVES.values()},
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def reached(course: pd.DataFrame, objective: str, level: float, along: str) -> float:
    """Where a course first reaches a level, between two models on a straight line; NaN where it never does.

    Args:
        course: of one run, in its order.
        objective: the column that is to reach the level from below.
        level: log-probability per frame.
        along: the column in which the place is given.
    """
    values, places = course[objective].to_numpy(), course[along].to_numpy()
    above = np.flatnonzero(values >= level)
    if not len(above):
        return float("nan")
    i = int(above[0])
    if i == 0:
        return float(places[0])
    part = (level - values[i - 1]) / (values[i] - values[i - 1])
    return float(places[i - 1] + part * (places[i] - places[i - 1]))


def level_of(course: pd.DataFrame, objective: str, share: float) -> float:
    """The log-probability at a share of the way from the end of a course's first epoch to its best.

    From the begin of training nearly all of the way is over within one epoch.
    """
    after_one = float(np.interp(1.0, course["epochs"], course[objective]))
    return after_one + share * (float(course[objective].max()) - after_one)


def speedups(courses: pd.DataFrame) -> pd.DataFrame:
    """How much less data a single job needs where there are N, until the validation objective is where N = 1 gets it.

    Args:
        courses: as `curves` gives them; jobs that are constant over a run only. A method without N = 1 is measured
            against that of the first one.

    Returns:
        A row for each optimiser, number of jobs above 1, seed and one of `SHARES`. Columns method, jobs, share,
        seed, level: log-probability; data_alone, data_per_job: epochs; speedup: their ratio, NaN where the level is
        never reached.
    """
    objective = OBJECTIVES["valid"]
    single = courses[courses["jobs"] == 1]
    rows = []
    for (method, seed), own in courses.groupby(["method", "seed"], sort=False):
        alone = own[own["jobs"] == 1]
        if alone.empty:
            alone = single[(single["method"] == single["method"].iloc[0]) & (single["seed"] == seed)]
        for jobs in sorted(set(own["jobs"]) - {0, 1}):
            for share in SHARES:
                level = level_of(alone, objective, share)
                data_alone = reached(alone, objective, level, "epochs_per_job")
                per_job = reached(own[own["jobs"] == jobs], objective, level, "epochs_per_job")
                rows.append(
                    {
                        "method": method,
                        "jobs": jobs,
                        "share": share,
                        "seed": seed,
                        "level": level,
                        "data_alone": data_alone,
                        "data_per_job": per_job,
                        "speedup": data_alone / per_job,
                    }
                )
    return pd.DataFrame(rows)


def data_needed(courses: pd.DataFrame, method: str, reference: str) -> pd.Series:
    """The share of its data that an optimiser needs, with one job, to get where another one's training objective ends.

    Returns:
        By seed; NaN where it never gets there.
    """
    alone = courses[courses["jobs"] == 1]
    found = {}
    for seed, own in alone[alone["method"] == method].groupby("seed"):
        other = alone[(alone["method"] == reference) & (alone["seed"] == seed)]
        level = float(other[OBJECTIVES["train"]].iloc[-1])
        found[seed] = reached(own, OBJECTIVES["train"], level, "epochs") / float(other["epochs"].iloc[-1])
    return pd.Series(found, name="share", dtype=np.float64)


def summary(experiment: Experiment, courses: pd.DataFrame, finishes: Mapping[str, Finish]) -> pd.DataFrame:
    """What came out of each run.

    Returns:
        Columns method, jobs, seed; valid_log_probability and train_log_probability of the last model, combined: the
        former of the final one, which is a combination of the last; test_log_probability, accuracy and error_rate (of
        words or phones) of the final model on the test set; minutes: see `curves`.
    """
    rows = []
    for method, jobs, seed in experiment.points():
        own = courses[(courses["method"] == method) & (courses["jobs"] == jobs) & (courses["seed"] == seed)]
        combination, evaluation = finishes[experiment.grid_run(method, jobs, seed)]
        rows.append(
            {
                "method": method,
                "jobs": jobs,
                "seed": seed,
                "valid_log_probability": own[OBJECTIVES["valid"]].iloc[-1],
                "combined": combination["valid_log_probability"][str(combination["models"])],
                "train_log_probability": own[OBJECTIVES["train"]].iloc[-1],
                "test_log_probability": evaluation["log_probability"],
                "accuracy": evaluation["accuracy"],
                "error_rate": evaluation.get("phone_error_rate", evaluation.get("word_error_rate", float("nan"))),
                "minutes": own["minutes"].iloc[-1],
            }
        )
    return pd.DataFrame(rows)


def on_grid(courses: pd.DataFrame, along: str, objective: str, num_points: int = 200) -> tuple[Doubles, Doubles]:
    """The courses of several seeds at common places.

    Args:
        courses: of runs that differ in their seed only.
        along: the column of the places.
        objective: the column that is wanted.
        num_points: how many places, as far as all courses go.

    Returns:
        The places (P,), and the values of each seed there (S, P), on straight lines between two models.
    """
    own = [course for _, course in courses.groupby("seed")]
    end = min(float(course[along].iloc[-1]) for course in own)
    places = np.linspace(0.0, end, num_points)
    return places, np.stack([np.interp(places, course[along], course[objective]) for course in own])
