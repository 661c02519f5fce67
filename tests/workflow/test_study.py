"""Tests of a whole study: one call sweeps, chooses rates, runs the grid and writes the page."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from .conftest import Workplace

STUDY: dict[str, Any] = {
    "scale": 1,
    "seeds": 2,
    "turnaround_seconds": 0.8,
    "num_valid_frames": 2000,
    "num_train_subset_frames": 2000,
    "pnorm_input_dim": 100,
    "pnorm_output_dim": 20,
    "num_hidden_layers": 1,
    "splice_indexes": "layer0/-2:-1:0:1:2",
    "paper": {
        "digits": {
            "settings": {"corpus": "digits", "samples_per_iter": 16000, "num_epochs": 2},
            "optimizers": {"ng-sgd": {"alpha": 1.0}},
            "sweep": {"num_epochs": 1},
            "rates": {"sgd": [0.005, 0.02], "ng-sgd": [0.02]},
            "decay": 10,
            "jobs": [1, 2],
            "growing": [],
        }
    },
}


@pytest.mark.slow
def test_one_call_makes_the_page_and_the_next_one_missing_files(tmp_path: Path) -> None:
    place = Workplace(tmp_path, STUDY)
    outcome = place.snakemake("paper")
    assert outcome.status == 0, outcome.text
    results = tmp_path / "results/paper/digits"
    assert json.loads((results / "learning_rates.json").read_text())["chosen"]["sgd"] in (0.005, 0.02)
    summary = pd.read_csv(results / "summary.tsv", sep="\t")
    assert set(zip(summary["method"], summary["jobs"], summary["seed"], strict=True)) == {
        (method, jobs, seed) for method in ("sgd", "ng-sgd") for jobs in (1, 2) for seed in (0, 1)
    }
    page = (tmp_path / "results/digits.md").read_text()
    assert "Additional settings of NG-SGD online: `alpha: 1.0`." in page
    for figure in ("optimisers", "jobs-ng-sgd", "time-sgd", "speedup", "averaging", "rates", "cost"):
        assert f"paper/digits/{figure}.png" in page
        assert (results / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert (results / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
    first = (results / "speedup.png").read_bytes()
    (results / "speedup.png").unlink()
    again = place.snakemake("paper")
    assert again.status == 0, again.text
    assert again.jobs == {"paper": 1, "study_figure": 1}
    assert (results / "speedup.png").read_bytes() == first
    # Another candidate rate repeats the choice, here with the same outcome.
    place.config["paper"]["digits"]["rates"]["sgd"].append(0.001)
    other = place.snakemake("paper")
    assert other.status == 0, other.text
    tuning = pd.read_csv(results / "tuning.tsv", sep="\t")
    assert tuning["rate"].tolist() == [0.005, 0.02, 0.001, 0.02]


def test_malformed_study_is_refused_in_one_line(tmp_path: Path) -> None:
    place = Workplace(tmp_path, STUDY | {"paper": {"digits": {"settings": {}}}})
    outcome = place.snakemake("paper", "--dry-run")
    assert outcome.status == 1
    assert outcome.last_line.startswith("error: paper: KeyError('sweep')")
