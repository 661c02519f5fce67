"""The workflow on speech that it makes itself."""

import json
from pathlib import Path

import pytest

from .conftest import SMALL, Workplace


@pytest.mark.slow
def test_from_sentences_to_phones(tmp_path: Path) -> None:
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
    # Chance is a phone in 58; other voices, rooms and noise than those trained on.
    assert scores["phone_error_rate"] < 0.75
    assert scores["phones"] > 500
    assert f"phone error rate {scores['phone_error_rate']:.2%}" in outcome.text
