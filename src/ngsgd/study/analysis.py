"""Analyses the runs of a grid: learning curves, speed-ups, and the data that one optimiser saves over another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from ngsgd.study.grid import Experiment

# Speed-ups are measured at these fractions of the improvement from the end of the first epoch to the best objective.
SHARES = (0.8, 0.95)
OBJECTIVES = {"valid": "valid_log_probability", "train": "train_log_probability"}

Doubles = npt.NDArray[np.float64]


class Finish(NamedTuple):
    """Results of a finished run.

    Attributes:
        combination: contents of ``combination.json``, on the choice of the final model.
        evaluation: contents of ``evaluation.json``, scores of the final model on the test set.
    """

    combination: Mapping[str, Any]
    evaluation: Mapping[str, Any]


def curves(experiment: Experiment, tables: Mapping[str, pd.DataFrame], turnaround: float) -> pd.DataFrame:
    """Returns the learning curves of all runs of a grid in one table.

    Args:
        experiment: the experiment that the grid belongs to.
        tables: metrics of each run, by run name.
        turnaround: seconds from the end of an iteration to the start of the next.

    Returns:
        One row per model. Columns method; jobs (0 if the number grows); seed; epochs: data processed by all jobs;
        epochs_per_job: data processed by a single job; minutes: training time on a cluster with one machine per job,
        the sum over iterations of the slowest job, the averaging and the turn-around; valid_log_probability;
        train_log_probability.
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
    """Returns where a learning curve first reaches a level, interpolated linearly; NaN if it never does.

    Args:
        course: learning curve of one run, in order.
        objective: column that has to reach the level from below.
        level: log-probability per frame.
        along: column whose value at that point is returned.
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
    """Returns the log-probability at a fraction of the improvement from the end of the first epoch to the best model.

    Measured from the start of training, nearly all of the improvement would fall into the first epoch.
    """
    after_one = float(np.interp(1.0, course["epochs"], course[objective]))
    return after_one + share * (float(course[objective].max()) - after_one)


def speedups(courses: pd.DataFrame) -> pd.DataFrame:
    """Compares the data that each of N jobs needs with the data that one job needs for the same validation objective.

    Args:
        courses: see `curves`. Runs whose number of jobs grows are ignored. A method without a run with N = 1 is
            compared with the first method's.

    Returns:
        One row per method, number of jobs above 1, seed and element of `SHARES`. Columns method; jobs; share; seed;
        level: log-probability to be reached; data_alone, data_per_job: epochs that the single job and each of the N
        jobs need; speedup: their ratio, NaN if the level is never reached.
    """
    objective = OBJECTIVES["valid"]
    singles = courses[courses["jobs"] == 1]
    rows = []
    for (method, seed), subset in courses.groupby(["method", "seed"], sort=False):
        single_job = subset[subset["jobs"] == 1]
        if single_job.empty:
            single_job = singles[(singles["method"] == singles["method"].iloc[0]) & (singles["seed"] == seed)]
        for jobs in sorted(set(subset["jobs"]) - {0, 1}):
            for share in SHARES:
                level = level_of(single_job, objective, share)
                data_alone = reached(single_job, objective, level, "epochs_per_job")
                per_job = reached(subset[subset["jobs"] == jobs], objective, level, "epochs_per_job")
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
    """Returns how much data one job of a method needs to reach the final training objective of a reference method.

    Returns:
        Fraction of the reference's data, by seed; NaN if the objective is never reached.
    """
    single_job = courses[courses["jobs"] == 1]
    shares = {}
    for seed, subset in single_job[single_job["method"] == method].groupby("seed"):
        other = single_job[(single_job["method"] == reference) & (single_job["seed"] == seed)]
        level = float(other[OBJECTIVES["train"]].iloc[-1])
        shares[seed] = reached(subset, OBJECTIVES["train"], level, "epochs") / float(other["epochs"].iloc[-1])
    return pd.Series(shares, name="share", dtype=np.float64)


def summary(experiment: Experiment, courses: pd.DataFrame, finishes: Mapping[str, Finish]) -> pd.DataFrame:
    """Returns the final scores of each run.

    Returns:
        Columns method, jobs, seed; valid_log_probability and train_log_probability of the last model; combined:
        validation log-probability of the final model, a combination of the last ones; test_log_probability, accuracy
        and error_rate (of words or phones) of the final model on the test set; minutes: see `curves`.
    """
    rows = []
    for method, jobs, seed in experiment.points():
        subset = courses[(courses["method"] == method) & (courses["jobs"] == jobs) & (courses["seed"] == seed)]
        combination, evaluation = finishes[experiment.grid_run(method, jobs, seed)]
        rows.append(
            {
                "method": method,
                "jobs": jobs,
                "seed": seed,
                "valid_log_probability": subset[OBJECTIVES["valid"]].iloc[-1],
                "combined": combination["valid_log_probability"][str(combination["models"])],
                "train_log_probability": subset[OBJECTIVES["train"]].iloc[-1],
                "test_log_probability": evaluation.get("log_probability", float("nan")),
                "accuracy": evaluation.get("accuracy", float("nan")),
                "error_rate": evaluation.get("phone_error_rate", evaluation.get("word_error_rate", float("nan"))),
                "minutes": subset["minutes"].iloc[-1],
            }
        )
    return pd.DataFrame(rows)


def on_grid(courses: pd.DataFrame, along: str, objective: str, num_points: int = 200) -> tuple[Doubles, Doubles]:
    """Interpolates the learning curves of several seeds at common points.

    Args:
        courses: learning curves of runs that differ only in their seed.
        along: column of the points.
        objective: column to be interpolated.
        num_points: number P of points, from 0 to the end of the shortest curve.

    Returns:
        The points (P,), and the linearly interpolated values of the S seeds (S, P).
    """
    per_seed = [course for _, course in courses.groupby("seed")]
    end = min(float(course[along].iloc[-1]) for course in per_seed)
    places = np.linspace(0.0, end, num_points)
    return places, np.stack([np.interp(places, course[along], course[objective]) for course in per_seed])
