"""The figures of a study: at column width, without need of colour vision, mean and spread over the seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from ngsgd.files import atomic_write
from ngsgd.reporting.plots import COLOURS, MARKERS
from ngsgd.study.analysis import OBJECTIVES, SHARES, on_grid
from ngsgd.study.grid import Experiment

WIDTH = 4.0  # inches
WITHIN = 3  # entries of a legend that the axes have room for; more stand below
LEGEND_ROW = 0.16  # inches
NAMES = {"sgd": "SGD", "ng-sgd": "NG-SGD online", "ng-sgd-simple": "NG-SGD simple"}
STYLES = {"sgd": 1, "ng-sgd": 0, "ng-sgd-simple": 2}  # in COLOURS and MARKERS; of other methods by their order
OBJECTIVE = "log-probability per frame (nats)"
VALIDATION = f"validation\n{OBJECTIVE}"
SHOWN = 0.75  # of the way from the first model to the best is left out of view


def name_of(method: str) -> str:
    """What a method is called in a legend or a table."""
    return NAMES.get(method, method.replace("-", " "))


def optimisers(courses: pd.DataFrame, path: Path) -> None:
    """Training and validation objective against data, one job, for each optimiser."""
    figure, axes = _axes()
    alone = courses[courses["jobs"] == 1]
    for method, k in _styles(alone).items():
        own = alone[alone["method"] == method]
        for name, dashes in (("valid", "-"), ("train", "--")):
            _course(axes, own, "epochs", OBJECTIVES[name], k, dashes, name_of(method), name == "valid")
    axes.plot([], [], "-", color="0.3", label="validation")
    axes.plot([], [], "--", color="0.3", label="training")
    _zoom(axes, alone, *OBJECTIVES.values())
    _finish(figure, axes, path, "data (epochs)", OBJECTIVE, "One job: what an optimiser makes of the data")


def numbers_of_jobs(courses: pd.DataFrame, method: str, path: Path) -> None:
    """Validation objective against data, for each number of jobs; perfect parallelism would be a single line."""
    title = f"{name_of(method)}: averaging N jobs"
    _by_jobs(courses, method, "epochs", path, "data, of all jobs together (epochs)", title)


def time_on_a_cluster(courses: pd.DataFrame, method: str, path: Path) -> None:
    """Validation objective against the time that training takes on a cluster with a machine for each job."""
    told = "minutes (longest job + averaging\n+ turn-around of each iteration, summed)"
    _by_jobs(courses, method, "minutes", path, told, f"{name_of(method)} on N machines")


def _by_jobs(courses: pd.DataFrame, method: str, along: str, path: Path, x: str, title: str) -> None:
    figure, axes = _axes()
    own = courses[courses["method"] == method]
    for i, jobs in enumerate(sorted(_sorted(own["jobs"]), key=lambda jobs: (jobs == 0, jobs))):
        _course(axes, own[own["jobs"] == jobs], along, OBJECTIVES["valid"], _style(i), "-", _jobs(jobs), True)
    _zoom(axes, own, OBJECTIVES["valid"])
    _finish(figure, axes, path, x, VALIDATION, title)


def speedup(table: pd.DataFrame, path: Path) -> None:
    """How much less data a job needs where there are N of them, with the line of perfect speed-up."""
    figure, axes = _axes()
    most = int(table["jobs"].max())
    missed = []
    axes.plot([1, most], [1, most], ":", color="0.4", label="perfect")
    for method, k in _styles(table).items():
        for share, dashes in zip(SHARES, ("--", "-"), strict=True):
            own = table[(table["method"] == method) & (table["share"] == share)].dropna(subset="speedup")
            # A mean over those seeds alone that got there would flatter.
            complete = [jobs for jobs, rows in own.groupby("jobs") if len(rows) == table["seed"].nunique()]
            means = own[own["jobs"].isin(complete)].groupby("jobs")["speedup"].agg(["mean", "min", "max"])
            if means.empty:
                missed.append(f"{name_of(method)}, {share:.0%}: not reached")
                continue
            x, mean = [1.0, *map(float, means.index)], np.array([1.0, *means["mean"]])
            value_range = np.abs(np.array([[1.0, *means["min"]], [1.0, *means["max"]]]) - mean)
            axes.errorbar(
                x, mean, value_range, fmt=dashes, color=COLOURS[k], marker=MARKERS[k], markersize=4, capsize=2.5,
                label=f"{name_of(method)}, {share:.0%} point",
            )  # fmt: skip
    for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        scale("log", base=2)
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
    axes.set_xticks(_sorted({1, *table["jobs"]}))
    axes.set_yticks(_sorted({1, *table["jobs"]}))
    for told in missed:
        axes.plot([], [], " ", label=told)
    _finish(figure, axes, path, "jobs (N)", "speed-up\n(data of one job / data a job)", "Speed-up by N jobs")


def cost(table: pd.DataFrame, path: Path) -> None:
    """Milliseconds of a minibatch."""
    figure, axes = _axes(height=2.4)
    shown = _styles(table)
    for i, (method, k) in enumerate(shown.items()):
        own = table[table["method"] == method]["milliseconds"]
        error = [[own.median() - own.min()], [own.max() - own.median()]]
        axes.barh(i, own.median(), xerr=error, color=COLOURS[k], capsize=3, height=0.6)
        ratio = table[table["method"] == method]["of_sgd"].median()
        axes.annotate(
            f"{ratio:.2f} x SGD", (own.max(), i), (6, 0), textcoords="offset points", va="center", fontsize="small"
        )
    axes.set_yticks(range(len(shown)), [name_of(method) for method in shown])
    axes.invert_yaxis()
    axes.set_xlim(0.0, 1.3 * table["milliseconds"].max())
    _finish(figure, axes, path, "a minibatch (ms, one thread)", "", "Cost of a step", legend=False)


def averaging(table: pd.DataFrame, path: Path) -> None:
    """The last model's validation objective against the number of jobs, and that of the final combination."""
    figure, axes = _axes()
    constant = table[table["jobs"] > 0]
    ticks = _sorted(constant["jobs"])
    for method, k in _styles(table).items():
        own = constant[constant["method"] == method]
        for column, dashes, what in (("valid_log_probability", "--", "last model"), ("combined", "-", "combination")):
            means = own.groupby("jobs")[column].agg(["mean", "min", "max"])
            value_range = np.abs(means[["min", "max"]].to_numpy().T - means["mean"].to_numpy())
            axes.errorbar(
                means.index, means["mean"], value_range, fmt=dashes, color=COLOURS[k], marker=MARKERS[k], markersize=4,
                capsize=2.5, label=f"{name_of(method)}, {what}",
            )  # fmt: skip
        growing = table[(table["method"] == method) & (table["jobs"] == 0)]["combined"]
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
    _finish(figure, axes, path, "jobs (N)", VALIDATION, "What averaging costs")


def rates(table: pd.DataFrame, path: Path) -> None:
    """What the learning rates of the sweep led to."""
    figure, axes = _axes(height=2.6)
    for method, k in _styles(table).items():
        own = table[table["method"] == method].sort_values("rate")
        axes.plot(
            own["rate"], own["valid_log_probability"], color=COLOURS[k], marker=MARKERS[k], markersize=4,
            label=name_of(method),
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
        figure, axes, path, "initial learning rate (per sample)", VALIDATION,
        "Learning rates; the chosen are ringed",
    )  # fmt: skip


def most_jobs(courses: pd.DataFrame, path: Path) -> None:
    """Validation objective against data with the most jobs, for each method, beside the first one with one job."""
    figure, axes = _axes()
    styles, most = _styles(courses), courses["jobs"].max()
    first = next(iter(styles))
    alone = courses[(courses["method"] == first) & (courses["jobs"] == 1)]
    _course(axes, alone, "epochs", OBJECTIVES["valid"], len(COLOURS) - 1, ":", f"{name_of(first)}, N = 1", True)
    for method, k in styles.items():
        own = courses[(courses["method"] == method) & (courses["jobs"] == most)]
        _course(axes, own, "epochs", OBJECTIVES["valid"], k, "-", name_of(method), True)
    _zoom(axes, courses, OBJECTIVES["valid"])
    _finish(
        figure, axes, path, "data, of all jobs together (epochs)", VALIDATION,
        f"N = {most} jobs",
    )  # fmt: skip


def _styles(table: pd.DataFrame) -> dict[str, int]:
    """The place in COLOURS and MARKERS of each method."""
    return {method: _style(STYLES.get(method, i)) for i, method in enumerate(table["method"].unique())}


def _axes(height: float = 3.2) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(WIDTH, height), layout="constrained")
    return figure, axes


def _sorted(values: Iterable[float]) -> list[int | float]:
    return sorted({value.item() if hasattr(value, "item") else value for value in values})


def _style(place: int) -> int:
    return place % len(COLOURS)


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


def _zoom(axes: Axes, courses: pd.DataFrame, *objectives: str) -> None:
    """Leaves the first models out of view, which would press everything else together."""
    first, best = courses[[*objectives]].min().min(), courses[[*objectives]].max().max()
    axes.set_ylim(first + SHOWN * (best - first), best + 0.03 * (best - first))


def _finish(figure: Figure, axes: Axes, path: Path, x: str, y: str, title: str, *, legend: bool = True) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize="medium")
    axes.grid(color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    entries = len(axes.get_legend_handles_labels()[1])
    if legend and entries <= WITHIN:
        axes.legend(frameon=False, fontsize="small", loc="best")
    elif legend:
        rows = -(-entries // 2)
        figure.set_figheight(figure.get_figheight() + rows * LEGEND_ROW)
        figure.legend(frameon=False, fontsize="x-small", loc="outside lower center", ncols=2, handlelength=3.5)
    metadata = {".png": {"Software": None}, ".pdf": {"CreationDate": None, "Producer": None, "Creator": None}}
    for suffix, own in metadata.items():
        with atomic_write(path.with_suffix(suffix)) as temporary:
            figure.savefig(temporary, format=suffix[1:], dpi=200, metadata=own)
    plt.close(figure)


OF_METHODS: Mapping[str, tuple[str, Callable[[pd.DataFrame, Path], None]]] = {
    "optimisers": ("curves", optimisers),
    "most_jobs": ("curves", most_jobs),
    "averaging": ("summary", averaging),
    "speedup": ("speedup", speedup),
    "rates": ("tuning", rates),
    "cost": ("cost", cost),
}
OF_EACH: Mapping[str, Callable[[pd.DataFrame, str, Path], None]] = {
    "jobs": numbers_of_jobs,
    "time": time_on_a_cluster,
}


def figures_of(experiment: Experiment) -> dict[str, str]:
    """The names of an experiment's figures, in the order of the page, and the table that each is made from."""
    left_out = {"optimisers", "cost"} if experiment.methods else {"most_jobs"}
    first, *others = ((name, table) for name, (table, _) in OF_METHODS.items() if name not in left_out)
    of_each = [(f"{kind}-{method}", "curves") for kind in OF_EACH for method in experiment.rates]
    return dict([first, *of_each, *others])


def draw(name: str, table: pd.DataFrame, path: Path) -> None:
    """Draws a figure of `figures_of` from its table, as PNG and PDF."""
    if name in OF_METHODS:
        OF_METHODS[name][1](table, path)
    else:
        kind, _, method = name.partition("-")
        OF_EACH[kind](table, method, path)
