"""The page that says what held and what did not: every number of it comes out of a file of the workflow."""

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
    """What is told of an experiment.

    Attributes:
        experiment: the experiment.
        data: the corpus.
        tables: by name, see `claims.claims`; also tuning, see `grid.tuning`.
        source: of the recorded numbers, if there are any.
    """

    experiment: Experiment
    data: CorpusInfo
    tables: Mapping[str, pd.DataFrame]
    source: str | None


def page(findings: Mapping[str, Findings], figures: Path) -> str:
    """The page, in Markdown.

    Args:
        findings: of each experiment.
        figures: the folder of their figures, as seen from the page.
    """
    parts = [
        "# The paper's claims",
        "Made from the files of its runs, by `make paper` (`config/paper.yaml`) or `make outer` (`config/outer.yaml`), "
        "which the commands below take as their configuration; nothing here is typed. The paper: Povey, Zhang and "
        "Khudanpur, arXiv:1410.7455. Means over the seeds, in brackets least and most.",
        "| claim | on | held to | found | verdict |\n| --- | --- | --- | --- | --- |\n"
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
    told = (
        f"{f.data.num_utterances['train']:,} utterances, {frames['train']:,} frames in {len(f.data.class_counts)} "
        f"classes; {frames['test']:,} frames for the test. {seeds}. "
        "Beside the default settings: " + _told(f.experiment.settings)
    )
    for method, own in {**f.experiment.methods, **f.experiment.optimizers}.items():
        told += f" {name_of(method)} moreover: {_told(own)}"
    parts = [f"## {name.capitalize()}", told]
    parts += [f"![{figure}]({figures}/{figure}.png)" for figure in figures_of(f.experiment)]
    folder = f"results/paper/{name}"
    for title, target, form in TABLES:
        if target in f.tables:
            parts += [f"### {title}", form(f.tables[target]), f"`{COMMAND.format(target=f'{folder}/{target}.tsv')}`"]
    if f.source:
        parts.append(f"Recorded: {f.source}")
    return parts


def _told(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}: {value}`" for key, value in settings.items()) + "."


def summary_table(outcome: pd.DataFrame) -> str:
    """A row for each optimiser and number of jobs."""
    rows = []
    for (method, jobs), own in outcome.groupby(["method", "jobs"], sort=False):
        rows.append(
            [
                name_of(str(method)),
                f"{jobs}" if jobs else "growing",
                *(
                    value_range(own[c], ".3f")
                    for c in ("train_log_probability", "valid_log_probability", "combined", "test_log_probability")
                ),
                value_range(100.0 * own["error_rate"], ".2f"),
                value_range(own["minutes"], ".1f"),
            ]
        )
    header = ["method", "jobs", "training, last model", "validation, last model", "validation, combination", "test"]
    return markdown([*header, "words or phones wrong, %", "minutes on N machines"], rows)


def speedup_table(speedup: pd.DataFrame) -> str:
    """A row for each optimiser, number of jobs and share of the way."""
    rows = [
        [
            name_of(str(method)),
            f"{jobs}",
            f"{share:.0%}",
            value_range(own["data_alone"], ".2f"),
            value_range(own["data_per_job"], ".2f"),
            value_range(own["speedup"], ".2f"),
        ]
        for (method, jobs, share), own in speedup.groupby(["method", "jobs", "share"], sort=False)
    ]
    return markdown(["method", "jobs", "point", "epochs of one job", "epochs of each of N", "speed-up"], rows)


def tuning_table(tuning: pd.DataFrame) -> str:
    """A row for each optimiser: the validation objective at each learning rate, the chosen one in bold."""
    rates = sorted(tuning["rate"].unique())
    rows = []
    for method, own in tuning.groupby("method", sort=False):
        found = {row.rate: f"{row.valid_log_probability:.3f}" for row in own.itertuples()}
        best = float(own[own["chosen"]]["rate"].iloc[0])
        cells = [f"**{found[rate]}**" if rate == best else found.get(rate, "") for rate in rates]
        rows.append([name_of(str(method)), *cells])
    return markdown(["validation, last model", *(f"{rate:g}" for rate in rates)], rows)


def cost_table(costs: pd.DataFrame) -> str:
    """A row for each optimiser."""
    rows = [
        [name_of(str(method)), value_range(own["milliseconds"], ".2f"), value_range(own["of_sgd"], ".2f")]
        for method, own in costs.groupby("method", sort=False)
    ]
    return markdown(["method", "ms", "of SGD's"], rows)


def recorded_table(table: pd.DataFrame) -> str:
    """A row for each place at which another program's numbers are known."""
    rows = []
    for (method, jobs, epochs), own in table.groupby(["method", "jobs", "epochs"], sort=False):
        cells = [name_of(str(method)), f"{jobs}", f"{epochs:.2f}"]
        for objective in OBJECTIVES.values():
            cells += [f"{own[f'{objective}_recorded'].iloc[0]:.3f}", value_range(own[objective], ".3f")]
        rows.append(cells)
    return markdown(["method", "jobs", "epochs", "validation, recorded", "ours", "training, recorded", "ours"], rows)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


TABLES = (
    ("What came out", "summary", summary_table),
    ("Speed-ups", "speedup", speedup_table),
    ("Beside another program", "recorded", recorded_table),
    ("Learning rates", "tuning", tuning_table),
    ("Cost of a minibatch", "cost", cost_table),
)
