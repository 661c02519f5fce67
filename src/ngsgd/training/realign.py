"""Realignment: during training, the examples are relabelled with alignments from the current model.

The archives do not change; each gets a separate file of labels. Source: ``steps/nnet2/train_multisplice_accel2.sh``
(realign_times) and ``steps/nnet2/relabel_egs2.sh`` of Kaldi.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ngsgd.data.alignment import realign_labels
from ngsgd.data.corpus import Int32s, Subset, map_array, read_info, split_bounds
from ngsgd.data.egs import NO_LABEL, archive_frames, corpus_layout, drawn_frames, open_archive
from ngsgd.errors import DataError
from ngsgd.files import atomic_write, derived_seed
from ngsgd.network.model import PRIOR_FLOOR, load_model
from ngsgd.training.combine import mean_posterior
from ngsgd.training.scoring import check_corpus_fits
from ngsgd.training.settings import Settings


def adjust_priors(settings: Settings, model: Path, prior: Path, output: Path) -> None:
    """Writes the model for a realignment: a model, with its mean posterior over training frames as priors.

    Args:
        settings: of the run.
        model: path of the model.
        prior: path of the frames for the priors.
        output: path of the model to be written.

    Raises:
        ModelError: the model cannot be read.
        DataError: the archive of frames for the priors cannot be read.
    """
    torch.set_num_threads(settings.threads)
    adjusted = load_model(model).eval()
    posterior = mean_posterior(adjusted, open_archive(prior), settings.context(), str(prior))
    adjusted.priors = posterior.clamp(min=PRIOR_FLOOR)
    adjusted.save(output)


def align(settings: Settings, model: Path, data: Path, split: int, outputs: Mapping[str, Path]) -> None:
    """Writes new labels for one split of the utterances of the training and the validation subset.

    Args:
        settings: of the run.
        model: path of a model with priors.
        data: folder of the prepared corpus.
        split: from 0.
        outputs: for each subset the path of the labels to be written.

    Raises:
        ModelError: the model cannot be read.
        DataError: the corpus cannot be read, or does not match the model.
    """
    torch.set_num_threads(settings.threads)
    aligner = load_model(model).eval()
    check_corpus_fits(aligner, read_info(data), data)
    for name, output in outputs.items():
        subset = Subset(data, name)
        parts = [np.zeros(0, np.int32)]
        for i in range(*split_bounds(len(subset), split, settings.num_splits)):
            features, labels = subset.utterance(i)
            log_likelihoods = aligner.log_likelihoods(torch.from_numpy(np.array(features))).numpy()
            parts.append(realign_labels(labels, log_likelihoods))
        _write(np.concatenate(parts), output)


def relabel_archive(settings: Settings, data: Path, splits: Sequence[Path], archive: int, output: Path) -> None:
    """Writes the labels of one archive in a realignment.

    Args:
        settings: of the run.
        data: folder of the prepared corpus.
        splits: paths of the new labels of the training utterances, by split.
        archive: from 0.
        output: path of the labels to be written.

    Raises:
        DataError: the corpus or the labels cannot be read.
    """
    subset = Subset(data, "train")
    layout = corpus_layout(data, settings.frames_per_eg, settings.samples_per_iter)
    frames = archive_frames(subset, layout, archive, settings.seed)
    _write(_new_labels(subset, splits, frames), output)


def relabel_diagnostics(settings: Settings, data: Path, splits: Sequence[Path], name: str, output: Path) -> None:
    """Writes the labels of the diagnostic examples in a realignment.

    Args:
        settings: of the run.
        data: folder of the prepared corpus.
        splits: paths of the new labels of the subset's utterances, by split.
        name: of the subset, ``valid`` or ``train``.
        output: path of the labels to be written.

    Raises:
        DataError: the corpus or the labels cannot be read.
    """
    subset = Subset(data, name)
    number = settings.num_valid_frames if name == "valid" else settings.num_train_subset_frames
    frames = drawn_frames(subset, number, derived_seed(settings.seed, "sample", name))
    _write(_new_labels(subset, splits, frames[:, None]), output)


def _new_labels(subset: Subset, splits: Sequence[Path], frames: npt.NDArray[np.int64]) -> Int32s:
    """Returns the new labels of some frames of a subset; frame numbers that are `NO_LABEL` stay so."""
    new_labels = np.full(frames.shape, NO_LABEL, np.int32)
    for split, path in enumerate(splits):
        first, last = (int(subset.starts[u]) for u in split_bounds(len(subset), split, len(splits)))
        labels = map_array(path)
        if labels.dtype != np.int32 or labels.shape != (last - first,):
            raise DataError(f"{path}: not the labels of {last - first} frames; delete it and run again")
        in_split = (frames >= first) & (frames < last)
        new_labels[in_split] = labels[frames[in_split] - first]
    return new_labels


def _write(labels: Int32s, path: Path) -> None:
    with atomic_write(path) as temporary, open(temporary, "wb") as f:
        np.save(f, labels)
