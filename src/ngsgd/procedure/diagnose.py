"""The diagnostics of one model: its score on the validation and on the training subset."""

from __future__ import annotations

import json
import os

import torch

from ngsgd.data.egs import open_archive
from ngsgd.files import write_text
from ngsgd.network.model import load_model
from ngsgd.procedure.scoring import score


def diagnose(
    model_path: str | os.PathLike[str],
    valid: str | os.PathLike[str],
    train: str | os.PathLike[str],
    context: tuple[int, int],
    threads: int,
    output: str | os.PathLike[str],
) -> None:
    """Writes ``{"valid": {...}, "train": {...}}`` (JSON) with log_probability, accuracy and frames of each.

    Raises:
        ModelError: the model cannot be read.
        DataError: an archive cannot be read, or does not go with the model.
    """
    torch.set_num_threads(threads)
    model = load_model(model_path).eval()
    scores = {
        name: score(model, open_archive(path), context, os.fspath(path))._asdict()
        for name, path in (("valid", valid), ("train", train))
    }
    write_text(output, json.dumps(scores, indent=1) + "\n")
