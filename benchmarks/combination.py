"""Compares final, last and averaged models of runs: python benchmarks/combination.py results/RUN [results/RUN ...].

Prints for each finished run the log-probability per frame of its last model, of the plain average of all candidates for
the combination, and of the final model, on the validation frames and on the test set.
"""

from __future__ import annotations

import json
import sys

import pandas as pd
import torch

from ngsgd import load_model
from ngsgd.data.corpus import Subset
from ngsgd.data.egs import open_archive
from ngsgd.training.evaluate import score_utterances
from ngsgd.training.model_mean import average_arrays
from ngsgd.training.run import Run
from ngsgd.training.scoring import score


def compare(folder: str) -> dict[str, float | str]:
    run = Run.open(folder)
    combination = json.loads(run.combination_file.read_text())
    last = max(int(path.stem) for path in run.model_file(0).parent.iterdir())
    models = {
        "last": load_model(run.model_file(last)),
        "final": load_model(run.final_model_file),
        "average": load_model(run.model_file(last)),
    }
    paths = [run.model_file(x) for x in range(last - combination["candidates"] + 1, last + 1)]
    average = {name: torch.from_numpy(array) for name, array in average_arrays(paths).items()}
    models["average"].load_state_dict(average)
    row: dict[str, float | str] = {
        "run": run.folder.name,
        "models": f"{combination['models']} of {combination['candidates']}",
    }
    for name in ("last", "average", "final"):
        model = models[name].eval()
        valid = score(model, open_archive(run.valid_file), run.settings.context(), str(run.valid_file))
        row[f"{name}, validation"] = valid.log_probability
        row[f"{name}, test"] = score_utterances(model, Subset(run.data, "test")).log_probability
    return row


if __name__ == "__main__":
    table = pd.DataFrame([compare(folder) for folder in sys.argv[1:]])
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4f}"))
    for other in ("last", "average"):
        difference = table["final, test"] - table[f"{other}, test"]
        error = difference.std() / len(difference) ** 0.5
        print(f"final - {other} on the test set: {difference.mean():+.4f} +- {error:.4f}")
