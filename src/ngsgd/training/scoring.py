"""Scores a model on examples: log-probability per frame of the correct class, and accuracy."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch

from ngsgd.data.corpus import CorpusInfo, Int32s
from ngsgd.data.egs import Examples, minibatches
from ngsgd.errors import DataError
from ngsgd.network.model import AcousticModel

BATCH = 1024  # frames at a time


class Score(NamedTuple):
    """Means over ``frames`` frames: log-probability (natural logarithm) and fraction of frames classified correctly."""

    log_probability: float
    accuracy: float
    frames: int


def check_fit(model: AcousticModel, archive: Examples, context: tuple[int, int], name: str, frame: int = 0) -> None:
    """Checks that a model can be used on one label position of an archive.

    Raises:
        DataError: the features have another dimension, the examples have another length or too little context, or there
            is no such position.
    """
    _, frames, dim = archive.features.shape
    length = archive.labels.shape[1]
    if dim != model.input_dim:
        raise DataError(f"{name}: features of dimension {dim}, the model takes {model.input_dim}")
    if not 0 <= frame < length:
        raise DataError(f"{name}: no label position {frame}, its examples have {length}")
    if (
        frames != context[0] + length + context[1]
        or model.left_context > context[0]
        or model.right_context > context[1]
    ):
        raise DataError(f"{name}: examples of {frames} frames do not have the context that the model needs")


@torch.no_grad()
def score(model: AcousticModel, archive: Examples, context: tuple[int, int], name: str) -> Score:
    """Scores a model on an archive of single frames.

    Args:
        model: in evaluation mode.
        archive: of examples with one label each.
        context: frames before and after the label in the archive.
        name: of the archive, for errors.

    Raises:
        DataError: the archive does not match the model, is empty, or has a label out of range.
    """
    check_fit(model, archive, context, name)
    total, correct, frames = 0.0, 0, 0
    needed = (model.left_context, model.right_context)
    for features, labels in minibatches(archive, 0, context, needed, BATCH, None):
        check_labels(labels, model.num_classes, name)
        y = torch.from_numpy(labels).long()
        log_posteriors = model(torch.from_numpy(features))[:, 0]
        total += float(log_posteriors.gather(1, y[:, None]).double().sum())
        correct += int((log_posteriors.argmax(dim=1) == y).sum())
        frames += len(labels)
    if frames == 0:
        raise DataError(f"{name}: no examples")
    return Score(total / frames, correct / frames, frames)


def check_corpus_fits(model: AcousticModel, info: CorpusInfo, corpus: str | os.PathLike[str]) -> None:
    """Checks that a model matches a prepared corpus.

    Raises:
        DataError: the dimension of the features or the number of classes differs.
    """
    if info.dim != model.input_dim or len(info.class_counts) != model.num_classes:
        raise DataError(
            f"{os.fspath(corpus)}: {info.dim} dimensions and {len(info.class_counts)} classes, "
            f"the model has {model.input_dim} and {model.num_classes}"
        )


def check_labels(labels: Int32s, num_classes: int, name: str) -> None:
    """Checks that the labels of a minibatch are classes of the model.

    Raises:
        DataError: a label is out of range.
    """
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        bad = int(labels[outside][0])
        raise DataError(f"{name}: label {bad} is outside 0 - {num_classes - 1}, the classes of the model")
