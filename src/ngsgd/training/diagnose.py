"""Diagnostics of one model: its scores on the validation and the training subset."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ngsgd.data.egs import open_archive
from ngsgd.files import write_text
from ngsgd.network.model import load_model
from ngsgd.training.scoring import score
from ngsgd.training.settings import Settings


def diagnose(
    settings: Settings,
    model: Path,
    valid: tuple[Path, Path | None],
    train: tuple[Path, Path | None],
    output: Path,
) -> None:
    """Scores a model and writes ``{"valid": {...}, "train": {...}}`` (JSON), each with the fields of `Score`.

    Args:
        settings: of the run.
        model: path of the model.
        valid: paths of the validation frames and of their new labels; None for the labels they have. A model is scored
            on the labels that the jobs starting from it train on; the last model on those of the last jobs.
        train: likewise for training frames.
        output: path of the file to be written.

    Raises:
        ModelError: the model cannot be read.
        DataError: an archive cannot be read, or does not match the model.
    """
    torch.set_num_threads(settings.threads)
    scored = load_model(model).eval()
    scores = {
        subset: score(scored, open_archive(examples, labels), settings.context(), str(examples))._asdict()
        for subset, (examples, labels) in (("valid", valid), ("train", train))
    }
    write_text(output, json.dumps(scores, indent=1) + "\n")
