"""Tests of the workflow on synthetic speech."""

import json
from pathlib import Path

import pytest

from .conftest import SMALL, Workplace


@pytest.mark.slow
def test_run_on_synthetic_speech(tmp_path: Path) -> None:
    config = SMALL | {
        "corpus": "synthetic",
        "hours": 0.1,
        "num_splits": 3,
        "feature_extractor": "kaldi-mfcc",
        "pnorm_input_dim": 200,
        "pnorm_output_dim": 40,
        "samples_per_iter": 4000,
        "num_epochs": 3,
    }
    place = Workplace(tmp_path, config)
    outcome = place.snakemake()
    assert outcome.status == 0, outcome.text
    assert outcome.jobs["prepare_part"] == 3
    scores = json.loads((place.run / "evaluation.json").read_text())
    # Chance is one phone of 58; the test set has other voices, rooms and noise than the training set.
    assert scores["phone_error_rate"] < 0.75
    assert scores["phones"] > 500
    assert f"phone error rate {scores['phone_error_rate']:.2%}" in outcome.text
