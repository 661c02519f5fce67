"""The figures of a study: at column width, without need of colour vision, mean and spread over the seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from ngsgd.faces.plots import COLOURS, MARKERS
from ngsgd.files import whole
from ngsgd.paper.analysis import OBJECTIVES, SHARES, on_grid

WIDTH = 4.0  # inches
NAMES = {"sgd": "SGD", "ng-sgd": "NG-SGD online", "ng-sgd-simple": "NG-SGD simple"}
STYLES = {"sgd": 1, "ng-sgd": 0, "ng-sgd-simple": 2}  # in COLOURS and MARKERS
OBJECTIVE = "log-probability per frame (nats)"
SHOWN = 0.75  # of the way from the first model to the best is left out of view


def optimisers(courses: pd.DataFrame, path: Path) -> None:
    """Training and validation objective against data, one job, for each optimiser."""
    figure, axes = _axes()
    alone = courses[courses["jobs"] == 1]
    for optimizer in alone["optimizer"].unique():
        own = alone[alone["optimizer"] == optimizer]
        for name, dashes in (("valid", "-"), ("train", "--")):
            _course(axes, own, "epochs", OBJECTIVES[name], STYLES[optimizer], dashes, NAMES[optimizer], name == "valid")
    axes.plot([], [], "-", color="0.3", label="validation")
    axes.plot([], [], "--", color="0.3", label="training")
    _zoom(axes, alone)
    _finish(figure, axes, path, "data (epochs)", OBJECTIVE, "One job: what an optimiser makes of the data")


def numbers_of_jobs(courses: pd.DataFrame, optimizer: str, path: Path) -> None:
    """Validation objective against data, for each number of jobs; perfect parallelism would be a single line."""
    figure, axes = _axes()
    own = courses[courses["optimizer"] == optimizer]
    for i, jobs in enumerate(_sorted(own["jobs"])):
        _course(axes, own[own["jobs"] == jobs], "epochs", OBJECTIVES["valid"], i, "-", _jobs(jobs), True)
    _zoom(axes, own)
    _finish(
        figure, axes, path, "data, of all jobs together (epochs)", f"validation {OBJECTIVE}",
        f"{NAMES[optimizer]}: averaging N jobs",
    )  # fmt: skip


def time_on_a_cluster(courses: pd.DataFrame, optimizer: str, path: Path) -> None:
    """Validation objective against the time that training takes on a cluster with a machine for each job."""
    figure, axes = _axes()
    own = courses[courses["optimizer"] == optimizer]
    for i, jobs in enumerate(_sorted(own["jobs"])):
        _course(axes, own[own["jobs"] == jobs], "minutes", OBJECTIVES["valid"], i, "-", _jobs(jobs), True)
    _zoom(axes, own)
    _finish(
        figure, axes, path, "minutes (longest job + averaging + turn-around, summed)", f"validation {OBJECTIVE}",
        f"{NAMES[optimizer]} on N machines",
    )  # fmt: skip


def speedup(table: pd.DataFrame, path: Path) -> None:
    """How much less data a job needs where there are N of them, with the line of perfect speed-up."""
    figure, axes = _axes()
    most = int(table["jobs"].max())
    axes.plot([1, most], [1, most], ":", color="0.4", label="perfect")
    for optimizer in table["optimizer"].unique():
        for share, dashes in zip(SHARES, ("--", "-"), strict=True):
            own = table[(table["optimizer"] == optimizer) & (table["share"] == share)].dropna(subset="speedup")
            # A mean over those seeds alone that got there would flatter.
            complete = [jobs for jobs, rows in own.groupby("jobs") if len(rows) == table["seed"].nunique()]
            means = own[own["jobs"].isin(complete)].groupby("jobs")["speedup"].agg(["mean", "min", "max"])
            x, mean = [1.0, *map(float, means.index)], np.array([1.0, *means["mean"]])
            spread = np.abs(np.array([[1.0, *means["min"]], [1.0, *means["max"]]]) - mean)
            k = STYLES[optimizer]
            axes.errorbar(
                x, mean, spread, fmt=dashes, color=COLOURS[k], marker=MARKERS[k], markersize=4, capsize=2.5,
                label=f"{NAMES[optimizer]}, {share:.0%} point",
            )  # fmt: skip
    for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        scale("log", base=2)
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
    axes.set_xticks(_sorted({1, *table["jobs"]}))
    axes.set_yticks(_sorted({1, *table["jobs"]}))
    _finish(figure, axes, path, "jobs (N)", "speed-up (data of one job / data a job)", "Speed-up by N jobs")


def cost(table: pd.DataFrame, path: Path) -> None:
    """Milliseconds of a minibatch."""
    figure, axes = _axes(height=2.4)
    shown = list(table["optimizer"].unique())
    for i, optimizer in enumerate(shown):
        own = table[table["optimizer"] == optimizer]["milliseconds"]
        error = [[own.median() - own.min()], [own.max() - own.median()]]
        axes.barh(i, own.median(), xerr=error, color=COLOURS[STYLES[optimizer]], capsize=3, height=0.6)
        ratio = table[table["optimizer"] == optimizer]["of_sgd"].median()
        axes.annotate(
            f"{ratio:.2f} x SGD", (own.max(), i), (6, 0), textcoords="offset points", va="center", fontsize="small"
        )
    axes.set_yticks(range(len(shown)), [NAMES[optimizer] for optimizer in shown])
    axes.invert_yaxis()
    axes.set_xlim(0.0, 1.3 * table["milliseconds"].max())
    _finish(figure, axes, path, "a minibatch (ms, one thread)", "", "Cost of a step", legend=False)


def averaging(table: pd.DataFrame, path: Path) -> None:
    """The last model's validation objective against the number of jobs, and that of the final combination."""
    figure, axes = _axes()
    constant = table[table["jobs"] > 0]
    ticks = _sorted(constant["jobs"])
    for optimizer in table["optimizer"].unique():
        own, k = constant[constant["optimizer"] == optimizer], STYLES[optimizer]
        for column, dashes, what in (("valid_log_probability", "--", "last model"), ("combined", "-", "combination")):
            means = own.groupby("jobs")[column].agg(["mean", "min", "max"])
            spread = np.abs(means[["min", "max"]].to_numpy().T - means["mean"].to_numpy())
            axes.errorbar(
                means.index, means["mean"], spread, fmt=dashes, color=COLOURS[k], marker=MARKERS[k], markersize=4,
                capsize=2.5, label=f"{NAMES[optimizer]}, {what}",
            )  # fmt: skip
        growing = table[(table["optimizer"] == optimizer) & (table["jobs"] == 0)]["combined"]
        if len(growing):
            axes.errorbar(
                [1.25 * max(ticks)], [growing.mean()],
                [[growing.mean() - growing.min()], [growing.max() - growing.mean()]],
                color=COLOURS[k], marker=MARKERS[k], markersize=6, markerfacecolor="white", capsize=2.5,
            )  # fmt: skip
    axes.set_xscale("log", base=2)
    labels = [str(jobs) for jobs in ticks]
    if (table["jobs"] == 0).any():
        ticks, labels = [*ticks, 1.25 * max(ticks)], [*labels, "\ngrowing"]
    axes.set_xticks(ticks, labels)
    axes.xaxis.set_minor_formatter(NullFormatter())
    _finish(figure, axes, path, "jobs (N)", f"validation {OBJECTIVE}", "What averaging costs, and combination gives")


def rates(table: pd.DataFrame, path: Path) -> None:
    """What the learning rates of the sweep led to."""
    figure, axes = _axes(height=2.6)
    for optimizer in table["optimizer"].unique():
        own, k = table[table["optimizer"] == optimizer].sort_values("rate"), STYLES[optimizer]
        axes.plot(
            own["rate"], own["valid_log_probability"], color=COLOURS[k], marker=MARKERS[k], markersize=4,
            label=NAMES[optimizer],
        )  # fmt: skip
        best = own[own["chosen"]]
        axes.plot(
            best["rate"], best["valid_log_probability"], "o", color=COLOURS[k], markersize=10, markerfacecolor="none"
        )
    axes.set_xscale("log")
    ticks = _sorted(table["rate"])
    axes.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    _finish(
        figure, axes, path, "initial learning rate (per sample)", f"validation\n{OBJECTIVE}",
        "Sweep of learning rates; the chosen are ringed",
    )  # fmt: skip


def _axes(height: float = 3.2) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(WIDTH, height), layout="constrained")
    return figure, axes


def _sorted(values: Iterable[float]) -> list[int | float]:
    return sorted({value.item() if hasattr(value, "item") else value for value in values})


def _jobs(jobs: float) -> str:
    return f"N = {jobs:g}" if jobs else "N grows"


def _course(
    axes: Axes, own: pd.DataFrame, along: str, objective: str, style: int, dashes: str, label: str, labelled: bool
) -> None:
    places, values = on_grid(own, along, objective)
    mean = values.mean(axis=0)
    axes.plot(
        places, mean, dashes, color=COLOURS[style], marker=MARKERS[style] if labelled else None, markersize=3.5,
        markevery=(4 * style, 25), linewidth=1.3, label=label if labelled else None,
    )  # fmt: skip
    if len(values) > 1:
        axes.fill_between(places, values.min(axis=0), values.max(axis=0), color=COLOURS[style], alpha=0.2, linewidth=0)


def _zoom(axes: Axes, courses: pd.DataFrame) -> None:
    """Leaves the first models out of view, which would press everything else together."""
    columns = list(OBJECTIVES.values())
    first, best = courses[columns].min().min(), courses[columns].max().max()
    axes.set_ylim(first + SHOWN * (best - first), best + 0.03 * (best - first))


def _finish(figure: Figure, axes: Axes, path: Path, x: str, y: str, title: str, *, legend: bool = True) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize="medium")
    axes.grid(color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(frameon=False, fontsize="small", loc="best")
    metadata = {".png": {"Software": None}, ".pdf": {"CreationDate": None, "Producer": None, "Creator": None}}
    for suffix, own in metadata.items():
        with whole(path.with_suffix(suffix)) as temporary:
            figure.savefig(temporary, format=suffix[1:], dpi=200, metadata=own)
    plt.close(figure)


FIGURES: Sequence[str] = ("optimisers", "averaging", "speedup", "rates")
"""Of an experiment, beside those of each optimiser."""
OF_OPTIMISERS: dict[str, Callable[[pd.DataFrame, str, Path], None]] = {
    "jobs": numbers_of_jobs,
    "time": time_on_a_cluster,
}
