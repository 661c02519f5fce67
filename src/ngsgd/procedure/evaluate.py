"""The final model on the test subset: frame scores, and words where the corpus has words."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import torch

from ngsgd.data.alignment import decode_word
from ngsgd.data.corpus import Subset, WordModel, read_info
from ngsgd.errors import DataError
from ngsgd.files import write_text
from ngsgd.network.model import AcousticModel, load_model
from ngsgd.procedure.scoring import Score, check_labels


def evaluate(
    model_path: str | os.PathLike[str],
    corpus: str | os.PathLike[str],
    threads: int,
    output: str | os.PathLike[str],
) -> None:
    """Writes ``log_probability``, ``accuracy`` and ``frames``, and for words ``word_error_rate`` and ``words``.

    Args:
        model_path: a model with priors.
        corpus: directory of the prepared corpus.
        threads: to compute with.
        output: where the scores are to be written (JSON).

    Raises:
        ModelError: the model cannot be read, or has no priors.
        DataError: the corpus cannot be read, has no test utterance, or does not go with the model.
    """
    torch.set_num_threads(threads)
    model = load_model(model_path).eval()
    info, test = read_info(corpus), Subset(corpus, "test")
    if info.dim != model.input_dim or len(info.class_counts) != model.num_classes:
        raise DataError(
            f"{os.fspath(corpus)}: {info.dim} dimensions and {len(info.class_counts)} classes, "
            f"the model has {model.input_dim} and {model.num_classes}"
        )
    result: dict[str, Any] = score_utterances(model, test)._asdict()
    if info.words:
        errors = sum(_decode(model, test, i, info.words) != word for i, word in enumerate(test.texts))
        result |= {"word_error_rate": errors / len(test), "words": len(test), "word_errors": errors}
    write_text(output, json.dumps(result, indent=1) + "\n")


@torch.no_grad()
def score_utterances(model: AcousticModel, subset: Subset) -> Score:
    """The model's score on all frames of a subset's utterances, their edges repeated for context.

    Raises:
        DataError: the subset is empty, or has a label out of range.
    """
    total, correct, frames = 0.0, 0, 0
    for i in range(len(subset)):
        features, labels = subset.utterance(i)
        check_labels(labels, model.num_classes, f"utterance {subset.names[i]}")
        y = torch.from_numpy(labels.astype(np.int64))
        log_posteriors = model.log_posteriors(torch.from_numpy(np.array(features)))
        total += float(log_posteriors.gather(1, y[:, None]).double().sum())
        correct += int((log_posteriors.argmax(dim=1) == y).sum())
        frames += len(labels)
    if frames == 0:
        raise DataError("no utterance to score the model on")
    return Score(total / frames, correct / frames, frames)


def _decode(model: AcousticModel, subset: Subset, i: int, words: list[WordModel]) -> str:
    features, _ = subset.utterance(i)
    return decode_word(model.log_likelihoods(torch.from_numpy(np.array(features))).numpy(), words)
