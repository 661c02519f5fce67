"""Diagnostics of one model: its scores on the validation and the training subset."""

from __future__ import annotations

import json

import torch

from ngsgd.data.egs import open_archive
from ngsgd.files import write_text
from ngsgd.network.model import load_model
from ngsgd.training.plan import read_plan
from ngsgd.training.run import Run
from ngsgd.training.scoring import score


def diagnose(run: Run, x: int) -> None:
    """Scores model x and writes ``{"valid": {...}, "train": {...}}`` (JSON), each with the fields of `Score`.

    Args:
        run: the run.
        x: number of the model, that from which iteration x starts.

    Raises:
        ModelError: the model cannot be read.
        DataError: the plan or an archive cannot be read, or does not match the model.
    """
    torch.set_num_threads(run.settings.threads)
    model = load_model(run.model(x)).eval()
    # A model is scored on the labels that the jobs starting from it train on; the last model on those of the last jobs.
    alignment = max(j.alignment for j in read_plan(run.plan) if j.iteration <= x) if run.settings.realign_times else 0
    scores = {}
    for subset, path in (("valid", run.valid), ("train", run.train_subset)):
        examples = open_archive(path, run.diagnostic_labels(alignment, subset))
        scores[subset] = score(model, examples, run.settings.context(), str(path))._asdict()
    write_text(run.diagnostics(x), json.dumps(scores, indent=1) + "\n")
