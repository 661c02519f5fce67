"""Tests of the results of a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ngsgd import load_model

from .conftest import Workplace


def test_files_of_a_run(undisturbed: Workplace) -> None:
    run = undisturbed.run
    plan = pd.read_csv(run / "plan.tsv", sep="\t")
    assert list(plan) == [
        "iteration", "job", "archive", "frame", "learning_rate", "minibatch_size", "threads", "seed", "action",
        "alignment",
    ]  # fmt: skip
    assert len(plan) == 12
    assert sorted(undisturbed.models()) == sorted(
        ["final.safetensors"]
        + [f"models/{x}.safetensors" for x in range(7)]
        + [f"jobs/{row.iteration}.{row.job}.safetensors" for row in plan.itertuples()]
    )
    assert (run / "models/6.safetensors").stat().st_size > 2**20
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["words"] == 30
    assert evaluation["word_error_rate"] <= 0.2  # 30 words, after a few seconds of training on 240 recordings
    assert evaluation["log_probability"] > np.log(1 / 30)
    assert 0 < evaluation["accuracy"] < 1
    assert (run / "figures/convergence.png").read_bytes().startswith(b"\x89PNG")


def test_metrics_of_a_run(undisturbed: Workplace) -> None:
    metrics = pd.read_csv(undisturbed.run / "metrics.tsv", sep="\t")
    plan = pd.read_csv(undisturbed.run / "plan.tsv", sep="\t")
    assert metrics["iteration"].tolist() == list(range(7))
    assert metrics["valid_log_probability"].notna().all()
    assert metrics["valid_log_probability"].iloc[0] == np.float64(metrics["train_log_probability"].iloc[0])
    assert metrics["valid_log_probability"].iloc[-1] > metrics["valid_log_probability"].iloc[0] + 1.0
    iterations = metrics.iloc[:-1]
    assert iterations["jobs"].tolist() == [2] * 6
    assert iterations["jobs_used"].tolist() == [1, 1, 2, 2, 2, 2]  # the best job at the start and after a new layer
    np.testing.assert_allclose(iterations["learning_rate"], plan.groupby("iteration")["learning_rate"].first())
    assert (iterations["seconds"] > 0).all()
    assert iterations["max_change_share"].between(0, 1).all()
    assert metrics["epochs"].tolist() == [x / 6 for x in range(7)]
    # The objective of the jobs during training is comparable to the score of the model on the training subset.
    np.testing.assert_allclose(
        iterations["job_log_probability"].iloc[-1], metrics["train_log_probability"].iloc[-1], atol=0.6
    )


def test_final_model_has_priors_and_history(undisturbed: Workplace) -> None:
    model = load_model(undisturbed.run / "final.safetensors").eval()
    assert model.priors is not None
    torch.testing.assert_close(model.priors.sum(), torch.tensor(1.0))
    assert [entry["iteration"] for entry in model.history["iterations"]] == list(range(6))
    assert model.history["combination"]["candidates"] >= 1
    assert sum(kind == "affine" for kind in (c["kind"] for c in model.architecture())) == 3


def test_models_contain_no_paths(undisturbed: Workplace) -> None:
    for name in undisturbed.models():
        header = (undisturbed.run / name).read_bytes()[:20_000]
        assert str(undisturbed.folder).encode() not in header
        assert b"results/" not in header


def test_runs_share_data_and_examples(undisturbed: Workplace, tmp_path: Path) -> None:
    config = undisturbed.config | {"runs": {"a": {}, "b": {"optimizer": "sgd"}, "c": {"samples_per_iter": 300}}}
    # Other jobs are known only after the plan.
    per_run = dict.fromkeys(("plan", "combine", "evaluate", "metrics", "convergence"), 3)
    plan = Workplace(tmp_path / "shared", config).snakemake("--dry-run")
    assert plan.status == 0, plan.text
    assert plan.jobs == {"activate_recipe": 3, "prepare_part": 2, "assemble": 1, "all": 1} | per_run
