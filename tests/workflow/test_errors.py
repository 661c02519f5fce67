"""Tests that errors end with one clear last line and leave no partial files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ngsgd.network.storage import read_model, write_model

from .conftest import Workplace


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"num_epoch": 1}, "unknown setting 'num_epoch'; did you mean 'num_epochs'?"),
        ({"num_epochs": "many"}, "num_epochs: 'many' is not of type 'number'"),
        ({"runs": {"a/b": {}}}, "runs: 'a/b' cannot be a run's name"),
        ({"threads": 999}, "runs: run: threads: 999, but this call may use"),
    ],
)
def test_invalid_setting_stops_the_call_at_once(empty: Workplace, change, line: str) -> None:
    empty.config.update(change)
    outcome = empty.snakemake()
    assert outcome.status != 0
    assert outcome.last_line.startswith("error: ")
    assert line in outcome.last_line
    assert not (empty.folder / "results").exists()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"num_jobs_final": 20}, "error: num_jobs_final = 20 jobs, but only 12 expanded archives"),
        ({"num_epochs": 0.2}, "error: 1 iterations are too few to insert 2 hidden layers"),
        ({"digits_file": "nowhere.npz"}, "error: runs: run: digits_file: nowhere.npz: no such file or folder in /"),
        ({"device": "cuda"}, "error: device: cuda: this machine has no usable GPU"),
    ],
)
def test_impossible_settings_are_reported(empty: Workplace, change, line: str) -> None:
    import torch

    if change.get("device") and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    empty.config.update(change)
    outcome = empty.snakemake()
    assert outcome.status != 0
    assert outcome.last_line.startswith(line), outcome.last_line
    assert not (empty.run / "plan.tsv").exists() or "device" in change
    assert not list(empty.folder.rglob("*.part"))


def test_impossible_plan_leaves_the_run_unchanged(finished: Workplace, undisturbed: Workplace) -> None:
    finished.config["num_epochs"] = 0.2
    assert finished.snakemake().status != 0
    assert finished.models() == undisturbed.models()
    finished.config["num_epochs"] = undisturbed.config["num_epochs"]
    outcome = finished.snakemake()
    assert outcome.status == 0
    assert "train" not in outcome.jobs
    assert finished.models() == undisturbed.models()


def test_truncated_model_is_reported_and_made_again_after_deletion(finished: Workplace, undisturbed: Workplace) -> None:
    broken = finished.run / "jobs/4.2.safetensors"
    broken.write_bytes(broken.read_bytes()[:100_000])
    (finished.run / "models/5.safetensors").unlink()
    outcome = finished.snakemake()
    assert outcome.status != 0
    assert outcome.last_line.startswith("error: results/run/jobs/4.2.safetensors: not a whole safetensors file")
    assert "delete it and run again" in outcome.last_line
    assert not (finished.run / "models/5.safetensors").exists()
    broken.unlink()
    assert finished.snakemake().status == 0
    assert finished.models() == undisturbed.models()


def test_job_with_nan_is_left_out_and_listed_in_the_metrics(finished: Workplace) -> None:
    path = finished.run / "jobs/5.1.safetensors"
    arrays, header = read_model(path)
    arrays["components.affine1.weight"][0, 0] = np.nan
    write_model(path, arrays, header)
    (finished.run / "models/6.safetensors").unlink()
    outcome = finished.snakemake()
    assert outcome.status == 0, outcome.text
    metrics = pd.read_csv(finished.run / "metrics.tsv", sep="\t").set_index("iteration")
    assert metrics.loc[5, "jobs"] == 2
    assert metrics.loc[5, "jobs_used"] == 1
    assert metrics.loc[5, "warning"] == "job 1 left out: components.affine1.weight is not finite"
    assert metrics["warning"].notna().sum() == 1
    averaged, healthy = (
        read_model(finished.run / name)[0] for name in ("models/6.safetensors", "jobs/5.2.safetensors")
    )
    assert all(np.array_equal(averaged[name], healthy[name]) for name in healthy)


def test_diverging_run_reports_the_cause_and_a_remedy(empty: Workplace) -> None:
    empty.config.update(optimizer="sgd", max_change_per_sample=0, initial_effective_lrate=1e30)
    outcome = empty.snakemake()
    assert outcome.status != 0
    assert outcome.last_line.startswith("error: iteration 0: no job produced a usable model (job 1: ")
    assert "lower initial_effective_lrate" in outcome.last_line


def test_edited_plan_is_refused(finished: Workplace) -> None:
    plan = finished.run / "plan.tsv"
    plan.write_text("".join(plan.read_text().splitlines(keepends=True)[:-1]))
    outcome = finished.snakemake()
    assert outcome.status != 0
    assert "plan.tsv is not the plan of the run's settings; delete it and run again" in outcome.text


@pytest.mark.slow
def test_batchnorm_network_trains(empty: Workplace) -> None:
    empty.config.update(normalization="batchnorm", nonlinearity="relu", hidden_dim=100)
    outcome = empty.snakemake("results/run/evaluation.json")
    assert outcome.status == 0, outcome.text
    assert json.loads((empty.run / "evaluation.json").read_text())["word_error_rate"] <= 0.3
    arrays = read_model(Path(empty.run / "final.safetensors"))[0]
    assert not np.array_equal(arrays["components.batchnorm0.running_mean"], np.zeros(100))
