"""Warm start: a run that starts from an existing model."""

from __future__ import annotations

import os

from ngsgd.data.corpus import CorpusInfo
from ngsgd.errors import ConfigError
from ngsgd.network.model import AcousticModel
from ngsgd.training.settings import Settings


def warm_start_model(
    model: AcousticModel, name: str | os.PathLike[str], settings: Settings, info: CorpusInfo
) -> AcousticModel:
    """Turns an existing model into a run's initial model, by clearing its history and priors in place.

    Args:
        model: the existing model.
        name: path of its file, for errors.
        settings: of the run.
        info: of the run's corpus.

    Raises:
        ConfigError: the model does not match the corpus, or needs more context than the examples have.
    """
    left, right = settings.context()
    where = f"initial_model: {os.fspath(name)}"
    if model.input_dim != info.dim or model.num_classes != len(info.class_counts):
        raise ConfigError(
            f"{where}: takes features of dimension {model.input_dim} and knows {model.num_classes} classes, "
            f"the corpus has {info.dim} and {len(info.class_counts)}"
        )
    if model.left_context > left or model.right_context > right:
        raise ConfigError(
            f"{where}: sees {model.left_context} frames before and {model.right_context} after a frame, the examples "
            f"hold {left} and {right}: set splice_indexes to those of the model"
        )
    model.history = {"iterations": []}
    model.priors = None
    return model
