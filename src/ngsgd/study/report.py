"""Writes the page of results: claims with verdicts, figures and tables, all from files of the workflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ngsgd.data.corpus import CorpusInfo
from ngsgd.study.analysis import OBJECTIVES
from ngsgd.study.claims import claims, value_range
from ngsgd.study.figures import figures_of, name_of
from ngsgd.study.grid import Experiment

COMMAND = "snakemake {target} --configfile ..."


@dataclass(frozen=True)
class Findings:
    """Results of an experiment.

    Attributes:
        experiment: the experiment.
        data: sizes of its corpus.
        tables: tables by name, see `claims.claims`; also tuning, see `grid.tuning`.
        source: source of the recorded numbers; None without recorded runs.
    """

    experiment: Experiment
    data: CorpusInfo
    tables: Mapping[str, pd.DataFrame]
    source: str | None


def page(findings: Mapping[str, Findings], figures: Path) -> str:
    """Returns the page in Markdown.

    Args:
        findings: results by name of the experiment.
        figures: folder of the figures, relative to the page.
    """
    parts = [
        "# The paper's claims",
        "Generated from the files of the runs by `make paper` (`config/paper.yaml`) or `make outer` "
        "(`config/outer.yaml`); the commands below take the same configuration file. No number is entered by hand. "
        "The paper: Povey, Zhang and Khudanpur, arXiv:1410.7455. Values are means over the seeds, with minimum and "
        "maximum in brackets.",
        "| claim | experiment | criterion | result | verdict |\n| --- | --- | --- | --- | --- |\n"
        + "\n".join(
            f"| {c.text} | {name} | {c.measure} | {c.evidence} | {'holds' if c.holds else '**does not hold**'} |"
            for name, f in findings.items()
            for c in claims(f.tables)
        ),
    ]
    for name, f in findings.items():
        parts += _experiment(name, f, figures / name)
    return "\n\n".join(parts) + "\n"


def _experiment(name: str, f: Findings, figures: Path) -> list[str]:
    frames = f.data.num_frames
    seeds = "1 seed" if f.experiment.num_seeds == 1 else f"{f.experiment.num_seeds} seeds"
    text = (
        f"{f.data.num_utterances['train']:,} training utterances with {frames['train']:,} frames in "
        f"{len(f.data.class_counts)} classes; {frames['test']:,} test frames. {seeds}. "
        "Settings that differ from the defaults: " + _format_settings(f.experiment.settings)
    )
    for method, settings in {**f.experiment.methods, **f.experiment.optimizers}.items():
        text += f" Additional settings of {name_of(method)}: {_format_settings(settings)}"
    parts = [f"## {name.capitalize()}", text]
    parts += [f"![{figure}]({figures}/{figure}.png)" for figure in figures_of(f.experiment)]
    folder = f"results/paper/{name}"
    for title, target, form in TABLES:
        if target in f.tables:
            parts += [f"### {title}", form(f.tables[target]), f"`{COMMAND.format(target=f'{folder}/{target}.tsv')}`"]
    if f.source:
        parts.append(f"Source of the recorded runs: {f.source}")
    return parts


def _format_settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}: {value}`" for key, value in settings.items()) + "."


def summary_table(outcome: pd.DataFrame) -> str:
    """Returns the final scores, one row per method and number of jobs."""
    rows = []
    for (method, jobs), subset in outcome.groupby(["method", "jobs"], sort=False):
        rows.append(
            [
                name_of(str(method)),
                f"{jobs}" if jobs else "growing",
                *(
                    value_range(subset[c], ".3f")
                    for c in ("train_log_probability", "valid_log_probability", "combined", "test_log_probability")
                ),
                value_range(100.0 * subset["error_rate"], ".2f"),
                value_range(subset["minutes"], ".1f"),
            ]
        )
    header = ["method", "jobs", "training, last model", "validation, last model", "validation, combination", "test"]
    return markdown([*header, "word or phone error rate, %", "minutes on N machines"], rows)


def speedup_table(speedup: pd.DataFrame) -> str:
    """Returns the speed-ups, one row per method, number of jobs and element of `SHARES`."""
    rows = [
        [
            name_of(str(method)),
            f"{jobs}",
            f"{share:.0%}",
            value_range(subset["data_alone"], ".2f"),
            value_range(subset["data_per_job"], ".2f"),
            value_range(subset["speedup"], ".2f"),
        ]
        for (method, jobs, share), subset in speedup.groupby(["method", "jobs", "share"], sort=False)
    ]
    return markdown(["method", "jobs", "point", "epochs, one job", "epochs, each of N jobs", "speed-up"], rows)


def tuning_table(tuning: pd.DataFrame) -> str:
    """Returns the validation objective at each learning rate, one row per method, the chosen one in bold."""
    rates = sorted(tuning["rate"].unique())
    rows = []
    for method, subset in tuning.groupby("method", sort=False):
        objectives = {row.rate: f"{row.valid_log_probability:.3f}" for row in subset.itertuples()}
        best = float(subset[subset["chosen"]]["rate"].iloc[0])
        cells = [f"**{objectives[rate]}**" if rate == best else objectives.get(rate, "") for rate in rates]
        rows.append([name_of(str(method)), *cells])
    return markdown(["validation, last model", *(f"{rate:g}" for rate in rates)], rows)


def cost_table(costs: pd.DataFrame) -> str:
    """Returns the time per minibatch, one row per optimiser."""
    rows = [
        [name_of(str(method)), value_range(subset["milliseconds"], ".2f"), value_range(subset["of_sgd"], ".2f")]
        for method, subset in costs.groupby("method", sort=False)
    ]
    return markdown(["method", "ms", "relative to SGD"], rows)


def recorded_table(table: pd.DataFrame) -> str:
    """Returns our scores next to the recorded ones, one row per recorded point."""
    rows = []
    for (method, jobs, epochs), subset in table.groupby(["method", "jobs", "epochs"], sort=False):
        cells = [name_of(str(method)), f"{jobs}", f"{epochs:.2f}"]
        for objective in OBJECTIVES.values():
            cells += [f"{subset[f'{objective}_recorded'].iloc[0]:.3f}", value_range(subset[objective], ".3f")]
        rows.append(cells)
    return markdown(["method", "jobs", "epochs", "validation, recorded", "ours", "training, recorded", "ours"], rows)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


TABLES = (
    ("Results", "summary", summary_table),
    ("Speed-ups", "speedup", speedup_table),
    ("Comparison with recorded runs", "recorded", recorded_table),
    ("Learning rates", "tuning", tuning_table),
    ("Cost of a minibatch", "cost", cost_table),
)
