"""Draws convergence plots that are readable at column width and without colour vision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ngsgd.files import atomic_write

# Okabe and Ito's colours are distinguishable with every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def convergence(tables: Mapping[str, pd.DataFrame], run: str, path: Path) -> None:
    """Draws log-probability, learning rate and number of jobs against the data processed.

    Args:
        tables: metrics of each run, by name, in the order of the legend.
        run: name of the run to be emphasised.
        path: PNG file to be written.
    """
    figure, (top, middle, bottom) = plt.subplots(
        3, 1, sharex=True, figsize=(6.4, 6.4), height_ratios=(4, 1, 1), layout="constrained"
    )
    handles = []
    for i, (name, table) in enumerate(tables.items()):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        weight = 2.0 if name == run else 1.2
        for subset, style in (("valid", "-"), ("train", "--")):
            top.plot(
                table["epochs"], table[f"{subset}_log_probability"], style, color=colour, linewidth=weight,
                marker=marker if subset == "valid" else None, markersize=3.5,
                markevery=max(1, len(table) // 12), zorder=3 if name == run else 2,
            )  # fmt: skip
        # Values of an iteration hold until the next model; the last model has none and repeats the previous ones.
        for axes, column in ((middle, "learning_rate"), (bottom, "jobs")):
            values = table[column].astype(float).ffill()
            axes.plot(table["epochs"], values, color=colour, linewidth=weight, drawstyle="steps-post")
        label = f"{name} (this run)" if name == run and len(tables) > 1 else name
        handles.append(Line2D([], [], color=colour, marker=marker, markersize=3.5, linewidth=weight, label=label))
    handles += [
        Line2D([], [], color="0.3", linestyle="-", label="validation"),
        Line2D([], [], color="0.3", linestyle="--", label="training"),
    ]
    # Scores before and after a realignment are not comparable, so it is marked.
    realigned = tables[run]["epochs"][tables[run]["alignment"].astype(float).ffill().diff() > 0]
    for epochs in realigned:
        top.axvline(epochs, color="0.3", linestyle=":", linewidth=1.0, zorder=1)
    if len(realigned):
        handles.append(Line2D([], [], color="0.3", linestyle=":", label="new labels (this run)"))
    _cut_off_first_model(top, tables)
    top.set_ylabel("log-probability per frame (nats)")
    top.legend(handles=handles, loc="lower right", frameon=False, ncols=2)
    top.set_title(f"Convergence of {run}")
    middle.set_ylabel("learning\nrate")
    middle.set_ylim(bottom=0.0)
    bottom.set_ylabel("jobs")
    bottom.set_ylim(bottom=0.0)
    bottom.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    bottom.set_xlabel("data processed (epochs)")
    for axes in (top, middle, bottom):
        axes.grid(color="0.9", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels()
    with atomic_write(path) as temporary:
        # Without date and version, the same metrics give the same bytes.
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
    plt.close(figure)


def _cut_off_first_model(axes: Axes, tables: Mapping[str, pd.DataFrame]) -> None:
    """Cuts off the first model, whose low values would compress the rest of the plot."""
    columns = ["valid_log_probability", "train_log_probability"]
    first = min(table[columns].iloc[1:].min().min() for table in tables.values())
    best = max(table[columns].max().max() for table in tables.values())
    axes.set_ylim(first - 0.05 * (best - first), min(0.0, best) + 0.05 * (best - first))
