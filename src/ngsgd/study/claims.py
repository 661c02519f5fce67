"""The paper's claims, each with its evidence and a verdict by a criterion that was fixed in advance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from ngsgd.study.analysis import OBJECTIVES, SHARES, data_needed

DATA_SHARE = 0.5  # maximum fraction of SGD's data that NG-SGD may need for SGD's final training objective
SPEEDUPS = {4: 3.2, 8: 5.5}  # minimum speed-up by number of jobs, at the last of SHARES
AS_GOOD = 0.02  # nats per frame by which an objective may be lower and still count as equally good
RECORDED_AS_GOOD = 0.05  # the same tolerance for the comparison with another program's runs
WON_BACK = 0.5  # minimum fraction of the loss caused by averaging that a method must recover


class Claim(NamedTuple):
    """A claim and its verdict.

    Attributes:
        text: the claim.
        measure: criterion for the verdict.
        evidence: measured result.
        holds: whether the criterion is met.
    """

    text: str
    measure: str
    evidence: str
    holds: bool


def claims(tables: Mapping[str, pd.DataFrame]) -> list[Claim]:
    """Returns the claims that an experiment can test.

    Args:
        tables: by name: curves, speedup, summary (see `analysis`); cost (see `cost.costs`), absent if the experiment
            compares methods with settings of their own, the first of which is plain averaging; recorded (see
            `recorded.compare_recorded`), if there are recorded runs.
    """
    outcome, costs = tables["summary"], tables.get("cost")
    if costs is None:
        return _recovery(outcome)
    results = [_faster(tables["curves"]), *_parallel(tables["speedup"]), _averaging(outcome)]
    if "ng-sgd-simple" in set(outcome["method"]):
        results.append(_online(outcome, costs))
    if "recorded" in tables:
        results.append(_as_recorded(tables["recorded"]))
    return results


def value_range(values: pd.Series, form: str) -> str:
    """Formats mean, minimum and maximum over seeds."""
    if values.isna().any():
        return f"not reached by {int(values.isna().sum())} of {len(values)} seeds"
    mean, minimum, maximum = (f"{{:{form}}}".format(v) for v in (values.mean(), values.min(), values.max()))
    return mean if minimum == maximum else f"{mean} ({minimum} – {maximum})"


def _faster(courses: pd.DataFrame) -> Claim:
    share = data_needed(courses, "ng-sgd", "sgd")
    return Claim(
        "With one job NG-SGD converges faster than SGD.",
        f"reaches SGD's final training objective with at most {DATA_SHARE:.0%} of the data",
        f"{value_range(share, '.0%')} of the data",
        bool((share <= DATA_SHARE).all()),
    )


def _parallel(speedup: pd.DataFrame) -> list[Claim]:
    results = []
    for jobs, minimum in SPEEDUPS.items():
        subset = speedup[(speedup["method"] == "ng-sgd") & (speedup["jobs"] == jobs)]
        if subset.empty:
            continue
        reached = {share: subset[subset["share"] == share]["speedup"] for share in SHARES}
        points = [
            f"{share:.0%} point: {'1/' if ratio.notna().all() else ''}{value_range(ratio, '.2f')}"
            for share, ratio in reversed(reached.items())
        ]
        last = reached[SHARES[-1]]
        results.append(
            Claim(
                f"With NG-SGD, {jobs} jobs with model averaging are nearly {jobs} times as fast as one job.",
                f"each job needs at most 1/{minimum} of the data to reach the {SHARES[-1]:.0%} point of a single job",
                "; ".join(points),
                bool(last.notna().all() and last.mean() >= minimum),
            )
        )
    return results


def _averaging(outcome: pd.DataFrame) -> Claim:
    max_jobs = int(outcome["jobs"].max())

    def lost(method: str) -> pd.Series[float]:
        subset: Any = outcome[outcome["method"] == method].set_index(["jobs", "seed"])["valid_log_probability"]
        difference: pd.Series[float] = subset.loc[1] - subset.loc[max_jobs]
        return difference

    sgd, ng = lost("sgd"), lost("ng-sgd")
    return Claim(
        "Averaging alone does not work well: it costs SGD more than NG-SGD.",
        f"decrease of the last model's validation objective from 1 to {max_jobs} jobs, with the same amount of data",
        f"SGD {value_range(sgd, '.3f')} nats per frame, NG-SGD {value_range(ng, '.3f')}",
        bool(sgd.mean() > ng.mean()),
    )


def _recovery(outcome: pd.DataFrame) -> list[Claim]:
    plain, *others = outcome["method"].unique()
    scores: Any = outcome.set_index(["method", "jobs", "seed"]).sort_index()["combined"]
    results = []
    for jobs in sorted(set(outcome["jobs"]) - {0, 1}):
        lost = scores.loc[plain, 1] - scores.loc[plain, jobs]
        for method in others:
            recovered = scores.loc[method, jobs] - scores.loc[plain, jobs]
            results.append(
                Claim(
                    f"{method.replace('-', ' ')} recovers the loss caused by averaging {jobs} jobs.",
                    f"recovers at least {WON_BACK:.0%} of the loss in validation objective (final model)",
                    f"{value_range(recovered, '+.3f')} of {value_range(lost, '.3f')} nats per frame",
                    bool(recovered.mean() >= WON_BACK * lost.mean() > 0.0),
                )
            )
    return results


def _online(outcome: pd.DataFrame, costs: pd.DataFrame) -> Claim:
    subset = outcome[outcome["jobs"] == 1].set_index(["method", "seed"])["train_log_probability"]
    gain = subset.loc["ng-sgd"] - subset.loc["ng-sgd-simple"]
    milliseconds = costs.pivot(index="repetition", columns="method", values="milliseconds")
    ratio = milliseconds["ng-sgd-simple"] / milliseconds["ng-sgd"]
    return Claim(
        "The online method is as good per epoch as the simple method and costs far less.",
        f"final training objective at most {AS_GOOD} nats per frame lower; at most half the time per minibatch",
        f"objective {value_range(gain, '+.3f')} nats per frame; "
        f"the simple method takes {value_range(ratio, '.1f')} x the time",
        bool(gain.mean() >= -AS_GOOD and ratio.median() >= 2.0),
    )


def _as_recorded(table: pd.DataFrame) -> Claim:
    column = OBJECTIVES["valid"]
    difference_to_recorded = (table[column] - table[f"{column}_recorded"]).groupby(table["seed"]).min()
    return Claim(
        "Our runs are as good as the recorded runs of another program.",
        f"validation objective at no point more than {RECORDED_AS_GOOD} nats per frame lower",
        f"worst difference of {len(table[table['seed'] == table['seed'].iloc[0]])} points: "
        f"{value_range(difference_to_recorded, '+.3f')} nats per frame",
        bool((difference_to_recorded >= -RECORDED_AS_GOOD).all()),
    )
