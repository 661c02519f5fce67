"""Tests over optimisers and seeds that the final model, chosen on validation frames, is good on the test set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ngsgd import load_model
from ngsgd.data.corpus import Subset
from ngsgd.data.egs import open_archive
from ngsgd.training.evaluate import score_utterances
from ngsgd.training.model_mean import average_arrays
from ngsgd.training.run import Run
from ngsgd.training.scoring import score

from .conftest import Workplace

SEEDS = (0, 1)


@pytest.mark.slow
def test_final_model_is_no_worse_than_the_plain_average(undisturbed: Workplace, tmp_path: Path) -> None:
    runs = {f"{o}-{seed}": {"optimizer": o, "seed": seed} for o in ("ng-sgd", "sgd") for seed in SEEDS}
    config = undisturbed.config | {"pnorm_input_dim": 200, "pnorm_output_dim": 40, "num_epochs": 2.5, "runs": runs}
    place = Workplace(tmp_path / "seeds", config)
    outcome = place.snakemake(*(f"results/{name}/final.safetensors" for name in runs))
    assert outcome.status == 0, outcome.text
    differences = []
    for name in runs:
        run = Run.open(place.folder / "results" / name)
        data, examples = place.folder / run.data, place.folder / run.examples / run.valid_file.name
        candidates = json.loads(run.combination_file.read_text())["candidates"]
        assert candidates >= 3
        last = max(int(path.stem) for path in (run.folder / "models").iterdir())
        paths = [run.model_file(x) for x in range(last - candidates + 1, last + 1)]
        final, newest, average = (
            load_model(run.final_model_file).eval(),
            load_model(paths[-1]).eval(),
            load_model(paths[-1]).eval(),
        )
        average.load_state_dict({key: torch.from_numpy(array) for key, array in average_arrays(paths).items()})

        def valid(model, run=run, examples=examples) -> float:
            return score(model, open_archive(examples), run.settings.context(), "valid").log_probability

        assert valid(final) >= max(valid(newest), valid(average)) - 1e-5
        test = Subset(data, "test")
        differences.append(
            score_utterances(final, test).log_probability - score_utterances(average, test).log_probability
        )
    noise = 2 * np.std(differences, ddof=1) / len(differences) ** 0.5
    assert np.mean(differences) >= -max(noise, 0.005), differences
