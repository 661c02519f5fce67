"""The paper's claims, each with its evidence and a verdict by a measure that was fixed beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from ngsgd.study.analysis import OBJECTIVES, SHARES, data_needed

DATA_SHARE = 0.5  # of SGD's data, in which NG-SGD is to get as far
SPEEDUPS = {4: 3.2, 8: 5.5}  # at the last of SHARES
AS_GOOD = 0.02  # nats a frame by which one objective may lie below another and count as being as good


RECORDED_AS_GOOD = 0.05  # likewise, beside another program's runs
WON_BACK = 0.5  # of what averaging loses


class Claim(NamedTuple):
    """A claim.

    Attributes:
        text: the claim.
        measure: what it is held to.
        evidence: what was found.
        holds: whether it does.
    """

    text: str
    measure: str
    evidence: str
    holds: bool


def claims(tables: Mapping[str, pd.DataFrame]) -> list[Claim]:
    """Those that the runs of an experiment say something about.

    Args:
        tables: by name: curves, speedup, summary (see `analysis`); cost (see `cost.costs`), unless the methods are no
            mere optimisers, of which the first is plain averaging; recorded (see `recorded.beside`), if there is one.
    """
    outcome, costs = tables["summary"], tables.get("cost")
    if costs is None:
        return _won_back(outcome)
    found = [_faster(tables["curves"]), *_parallel(tables["speedup"]), _averaging(outcome)]
    if "ng-sgd-simple" in set(outcome["method"]):
        found.append(_online(outcome, costs))
    if "recorded" in tables:
        found.append(_as_recorded(tables["recorded"]))
    return found


def value_range(values: pd.Series, form: str) -> str:
    """Mean, least and most of values of several seeds."""
    if values.isna().any():
        return f"not reached by {int(values.isna().sum())} of {len(values)} seeds"
    mean, least, most = (f"{{:{form}}}".format(v) for v in (values.mean(), values.min(), values.max()))
    return mean if least == most else f"{mean} ({least} – {most})"


def _faster(courses: pd.DataFrame) -> Claim:
    share = data_needed(courses, "ng-sgd", "sgd")
    return Claim(
        "With one job NG-SGD converges faster than SGD.",
        f"it reaches SGD's final training objective in at most {DATA_SHARE:.0%} of the data",
        f"{value_range(share, '.0%')} of the data",
        bool((share <= DATA_SHARE).all()),
    )


def _parallel(speedup: pd.DataFrame) -> list[Claim]:
    found = []
    for jobs, least in SPEEDUPS.items():
        own = speedup[(speedup["method"] == "ng-sgd") & (speedup["jobs"] == jobs)]
        if own.empty:
            continue
        reached = {share: own[own["share"] == share]["speedup"] for share in SHARES}
        told = [
            f"{share:.0%} point: {'1/' if ratio.notna().all() else ''}{value_range(ratio, '.2f')}"
            for share, ratio in reversed(reached.items())
        ]
        last = reached[SHARES[-1]]
        found.append(
            Claim(
                f"With NG-SGD {jobs} jobs whose models are averaged are nearly {jobs} times as fast as one.",
                f"a job needs at most 1/{least} of the data to reach the {SHARES[-1]:.0%} point of one job",
                "; ".join(told),
                bool(last.notna().all() and last.mean() >= least),
            )
        )
    return found


def _averaging(outcome: pd.DataFrame) -> Claim:
    most = int(outcome["jobs"].max())

    def lost(method: str) -> pd.Series[float]:
        own: Any = outcome[outcome["method"] == method].set_index(["jobs", "seed"])["valid_log_probability"]
        difference: pd.Series[float] = own.loc[1] - own.loc[most]
        return difference

    sgd, ng = lost("sgd"), lost("ng-sgd")
    return Claim(
        "Averaging alone does not work well: SGD loses more by it than NG-SGD does.",
        f"validation objective of the last model that {most} jobs lose against one, after the same data",
        f"SGD loses {value_range(sgd, '.3f')} nats a frame, NG-SGD {value_range(ng, '.3f')}",
        bool(sgd.mean() > ng.mean()),
    )


def _won_back(outcome: pd.DataFrame) -> list[Claim]:
    plain, *others = outcome["method"].unique()
    scores: Any = outcome.set_index(["method", "jobs", "seed"]).sort_index()["combined"]
    found = []
    for jobs in sorted(set(outcome["jobs"]) - {0, 1}):
        lost = scores.loc[plain, 1] - scores.loc[plain, jobs]
        for method in others:
            won = scores.loc[method, jobs] - scores.loc[plain, jobs]
            found.append(
                Claim(
                    f"{method.replace('-', ' ')} wins back what averaging {jobs} jobs loses.",
                    f"at least {WON_BACK:.0%} of the validation objective (final model) that averaging costs",
                    f"{value_range(won, '+.3f')} of {value_range(lost, '.3f')} nats a frame",
                    bool(won.mean() >= WON_BACK * lost.mean() > 0.0),
                )
            )
    return found


def _online(outcome: pd.DataFrame, costs: pd.DataFrame) -> Claim:
    own = outcome[outcome["jobs"] == 1].set_index(["method", "seed"])["train_log_probability"]
    gain = own.loc["ng-sgd"] - own.loc["ng-sgd-simple"]
    milliseconds = costs.pivot(index="repetition", columns="method", values="milliseconds")
    ratio = milliseconds["ng-sgd-simple"] / milliseconds["ng-sgd"]
    return Claim(
        "The online form does as well per epoch as the simple form, and costs far less.",
        f"its final training objective is not {AS_GOOD} nats a frame lower; a minibatch takes half the time at most",
        f"objective {value_range(gain, '+.3f')} nats higher; "
        f"the simple form takes {value_range(ratio, '.1f')} x the time",
        bool(gain.mean() >= -AS_GOOD and ratio.median() >= 2.0),
    )


def _as_recorded(table: pd.DataFrame) -> Claim:
    column = OBJECTIVES["valid"]
    ahead = (table[column] - table[f"{column}_recorded"]).groupby(table["seed"]).min()
    return Claim(
        "Where another program's runs are known, ours are as good.",
        f"validation objective nowhere more than {RECORDED_AS_GOOD} nats a frame below",
        f"at the worst of {len(table[table['seed'] == table['seed'].iloc[0]])} places "
        f"{value_range(ahead, '+.3f')} nats",
        bool((ahead >= -RECORDED_AS_GOOD).all()),
    )
