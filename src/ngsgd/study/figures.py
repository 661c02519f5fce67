"""Draws the figures of a study: mean and spread over the seeds, readable at column width and without colour vision."""

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
WITHIN = 3  # legends with at most so many entries are placed inside the axes, longer ones below
LEGEND_ROW = 0.16  # inches per row of a legend
NAMES = {"sgd": "SGD", "ng-sgd": "NG-SGD online", "ng-sgd-simple": "NG-SGD simple"}
STYLES = {
    "sgd": 1,
    "ng-sgd": 0,
    "ng-sgd-simple": 2,
}  # index in COLOURS and MARKERS; other methods are numbered by order
OBJECTIVE = "log-probability per frame (nats)"
VALIDATION = f"validation\n{OBJECTIVE}"
SHOWN = 0.75  # lowest fraction of the range of values that is cut off, see `_zoom`


def name_of(method: str) -> str:
    """Returns the display name of a method."""
    return NAMES.get(method, method.replace("-", " "))


def optimisers(courses: pd.DataFrame, path: Path) -> None:
    """Draws training and validation objective against data for each optimiser, with one job."""
    figure, axes = _axes()
    single_job = courses[courses["jobs"] == 1]
    for method, k in _styles(single_job).items():
        subset = single_job[single_job["method"] == method]
        for name, dashes in (("valid", "-"), ("train", "--")):
            _course(axes, subset, "epochs", OBJECTIVES[name], k, dashes, name_of(method), name == "valid")
    axes.plot([], [], "-", color="0.3", label="validation")
    axes.plot([], [], "--", color="0.3", label="training")
    _zoom(axes, single_job, *OBJECTIVES.values())
    _finish(figure, axes, path, "data (epochs)", OBJECTIVE, "Convergence with one job")


def numbers_of_jobs(courses: pd.DataFrame, method: str, path: Path) -> None:
    """Draws validation objective against data for each number of jobs; with perfect parallelism the curves coincide."""
    title = f"{name_of(method)}: averaging N jobs"
    _by_jobs(courses, method, "epochs", path, "data processed by all jobs (epochs)", title)


def time_on_a_cluster(courses: pd.DataFrame, method: str, path: Path) -> None:
    """Draws validation objective against training time on a cluster with one machine per job."""
    label = "minutes (sum over iterations of\nslowest job, averaging and turn-around)"
    _by_jobs(courses, method, "minutes", path, label, f"{name_of(method)} on N machines")


def _by_jobs(courses: pd.DataFrame, method: str, along: str, path: Path, x: str, title: str) -> None:
    figure, axes = _axes()
    subset = courses[courses["method"] == method]
    for i, jobs in enumerate(sorted(_sorted(subset["jobs"]), key=lambda jobs: (jobs == 0, jobs))):
        _course(axes, subset[subset["jobs"] == jobs], along, OBJECTIVES["valid"], _style(i), "-", _jobs(jobs), True)
    _zoom(axes, subset, OBJECTIVES["valid"])
    _finish(figure, axes, path, x, VALIDATION, title)


def speedup(table: pd.DataFrame, path: Path) -> None:
    """Draws the speed-up in data per job against the number of jobs, with the line of perfect speed-up."""
    figure, axes = _axes()
    max_jobs = int(table["jobs"].max())
    missed = []
    axes.plot([1, max_jobs], [1, max_jobs], ":", color="0.4", label="perfect")
    for method, k in _styles(table).items():
        for share, dashes in zip(SHARES, ("--", "-"), strict=True):
            subset = table[(table["method"] == method) & (table["share"] == share)].dropna(subset="speedup")
            # A mean over only the seeds that reached the level would be too optimistic.
            complete = [jobs for jobs, rows in subset.groupby("jobs") if len(rows) == table["seed"].nunique()]
            means = subset[subset["jobs"].isin(complete)].groupby("jobs")["speedup"].agg(["mean", "min", "max"])
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
    for note in missed:
        axes.plot([], [], " ", label=note)
    _finish(figure, axes, path, "jobs (N)", "speed-up\n(data of one job / data per job)", "Speed-up with N jobs")


def cost(table: pd.DataFrame, path: Path) -> None:
    """Draws the milliseconds per minibatch of each optimiser."""
    figure, axes = _axes(height=2.4)
    shown = _styles(table)
    for i, (method, k) in enumerate(shown.items()):
        subset = table[table["method"] == method]["milliseconds"]
        error = [[subset.median() - subset.min()], [subset.max() - subset.median()]]
        axes.barh(i, subset.median(), xerr=error, color=COLOURS[k], capsize=3, height=0.6)
        ratio = table[table["method"] == method]["of_sgd"].median()
        axes.annotate(
            f"{ratio:.2f} x SGD", (subset.max(), i), (6, 0), textcoords="offset points", va="center", fontsize="small"
        )
    axes.set_yticks(range(len(shown)), [name_of(method) for method in shown])
    axes.invert_yaxis()
    axes.set_xlim(0.0, 1.3 * table["milliseconds"].max())
    _finish(figure, axes, path, "time per minibatch (ms, one thread)", "", "Cost of a step", legend=False)


def averaging(table: pd.DataFrame, path: Path) -> None:
    """Draws the validation objective of the last and of the combined model against the number of jobs."""
    figure, axes = _axes()
    constant = table[table["jobs"] > 0]
    ticks = _sorted(constant["jobs"])
    for method, k in _styles(table).items():
        subset = constant[constant["method"] == method]
        for column, dashes, model in (("valid_log_probability", "--", "last model"), ("combined", "-", "combination")):
            means = subset.groupby("jobs")[column].agg(["mean", "min", "max"])
            value_range = np.abs(means[["min", "max"]].to_numpy().T - means["mean"].to_numpy())
            axes.errorbar(
                means.index, means["mean"], value_range, fmt=dashes, color=COLOURS[k], marker=MARKERS[k], markersize=4,
                capsize=2.5, label=f"{name_of(method)}, {model}",
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
    _finish(figure, axes, path, "jobs (N)", VALIDATION, "Cost of averaging")


def rates(table: pd.DataFrame, path: Path) -> None:
    """Draws the validation objective of the sweep against the learning rate."""
    figure, axes = _axes(height=2.6)
    for method, k in _styles(table).items():
        subset = table[table["method"] == method].sort_values("rate")
        axes.plot(
            subset["rate"], subset["valid_log_probability"], color=COLOURS[k], marker=MARKERS[k], markersize=4,
            label=name_of(method),
        )  # fmt: skip
        best = subset[subset["chosen"]]
        axes.plot(
            best["rate"], best["valid_log_probability"], "o", color=COLOURS[k], markersize=10, markerfacecolor="none"
        )
    axes.set_xscale("log")
    ticks = _sorted(table["rate"])
    axes.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    _finish(
        figure, axes, path, "initial learning rate (per sample)", VALIDATION,
        "Learning rates (chosen ones circled)",
    )  # fmt: skip


def most_jobs(courses: pd.DataFrame, path: Path) -> None:
    """Draws validation objective against data for each method with the most jobs, and for the first with one job."""
    figure, axes = _axes()
    styles, max_jobs = _styles(courses), courses["jobs"].max()
    first = next(iter(styles))
    single_job = courses[(courses["method"] == first) & (courses["jobs"] == 1)]
    _course(axes, single_job, "epochs", OBJECTIVES["valid"], len(COLOURS) - 1, ":", f"{name_of(first)}, N = 1", True)
    for method, k in styles.items():
        subset = courses[(courses["method"] == method) & (courses["jobs"] == max_jobs)]
        _course(axes, subset, "epochs", OBJECTIVES["valid"], k, "-", name_of(method), True)
    _zoom(axes, courses, OBJECTIVES["valid"])
    _finish(
        figure, axes, path, "data processed by all jobs (epochs)", VALIDATION,
        f"N = {max_jobs} jobs",
    )  # fmt: skip


def _styles(table: pd.DataFrame) -> dict[str, int]:
    """Returns the index in COLOURS and MARKERS of each method."""
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
    axes: Axes, subset: pd.DataFrame, along: str, objective: str, style: int, dashes: str, label: str, labelled: bool
) -> None:
    places, values = on_grid(subset, along, objective)
    mean = values.mean(axis=0)
    axes.plot(
        places, mean, dashes, color=COLOURS[style], marker=MARKERS[style] if labelled else None, markersize=3.5,
        markevery=(4 * style, 25), linewidth=1.3, label=label if labelled else None,
    )  # fmt: skip
    if len(values) > 1:
        axes.fill_between(places, values.min(axis=0), values.max(axis=0), color=COLOURS[style], alpha=0.2, linewidth=0)


def _zoom(axes: Axes, courses: pd.DataFrame, *objectives: str) -> None:
    """Cuts off the first models, whose low values would compress the rest of the figure."""
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
    for suffix, fields in metadata.items():
        with atomic_write(path.with_suffix(suffix)) as temporary:
            figure.savefig(temporary, format=suffix[1:], dpi=200, metadata=fields)
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
    """Returns the names of an experiment's figures, in the order of the page, and the table of each."""
    left_out = {"optimisers", "cost"} if experiment.methods else {"most_jobs"}
    first, *others = ((name, table) for name, (table, _) in OF_METHODS.items() if name not in left_out)
    of_each = [(f"{kind}-{method}", "curves") for kind in OF_EACH for method in experiment.rates]
    return dict([first, *of_each, *others])


def draw(name: str, table: pd.DataFrame, path: Path) -> None:
    """Draws one of the figures of `figures_of` from its table, as PNG and PDF."""
    if name in OF_METHODS:
        OF_METHODS[name][1](table, path)
    else:
        kind, _, method = name.partition("-")
        OF_EACH[kind](table, method, path)
