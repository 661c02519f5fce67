"""Realignment: during training, the examples are relabelled with alignments from the current model.

The archives do not change; each gets a separate file of labels. Source: ``steps/nnet2/train_multisplice_accel2.sh``
(realign_times) and ``steps/nnet2/relabel_egs2.sh`` of Kaldi.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ngsgd.data.alignment import realign_labels
from ngsgd.data.corpus import Int32s, Subset, map_array, read_info, split_bounds
from ngsgd.data.egs import NO_LABEL, archive_frames, drawn_frames, open_archive
from ngsgd.errors import DataError
from ngsgd.files import atomic_write, derived_seed
from ngsgd.network.model import PRIOR_FLOOR, load_model
from ngsgd.training.combine import mean_posterior
from ngsgd.training.run import Run
from ngsgd.training.scoring import check_corpus_fits

ALIGNED = ("train", "valid")


def adjust_priors(run: Run, alignment: int, x: int) -> None:
    """Writes the model for a realignment: model x, with the mean posterior over training frames as priors.

    Raises:
        ModelError: the model cannot be read.
        DataError: the archive of frames for the priors cannot be read.
    """
    torch.set_num_threads(run.settings.threads)
    model = load_model(run.model(x)).eval()
    prior = mean_posterior(model, open_archive(run.prior), run.settings.context(), str(run.prior))
    model.priors = prior.clamp(min=PRIOR_FLOOR)
    model.save(run.alignment_model(alignment))


def align(run: Run, alignment: int, split: int) -> None:
    """Writes new labels for one split of the utterances of the training and the validation subset.

    Raises:
        ModelError: the model cannot be read.
        DataError: the corpus cannot be read, or does not match the model.
    """
    torch.set_num_threads(run.settings.threads)
    model = load_model(run.alignment_model(alignment)).eval()
    check_corpus_fits(model, read_info(run.data), run.data)
    for name in ALIGNED:
        subset = Subset(run.data, name)
        parts = [np.zeros(0, np.int32)]
        for i in range(*split_bounds(len(subset), split, run.settings.num_splits)):
            features, labels = subset.utterance(i)
            log_likelihoods = model.log_likelihoods(torch.from_numpy(np.array(features))).numpy()
            parts.append(realign_labels(labels, log_likelihoods))
        with atomic_write(run.aligned(alignment, split, name)) as temporary, open(temporary, "wb") as f:
            np.save(f, np.concatenate(parts))


def relabel_archive(run: Run, alignment: int, archive: int, path: Path) -> None:
    """Writes the labels of one archive in a realignment.

    Raises:
        DataError: the corpus or the labels cannot be read.
    """
    subset = Subset(run.data, "train")
    frames = archive_frames(subset, run.layout(), archive, run.settings.seed)
    _write(_new_labels(run, alignment, subset, "train", frames), path)


def relabel_diagnostics(run: Run, alignment: int, name: str, path: Path) -> None:
    """Writes the labels of the diagnostic examples (``valid`` or ``train``) in a realignment.

    Raises:
        DataError: the corpus or the labels cannot be read.
    """
    s = run.settings
    subset = Subset(run.data, name)
    number = s.num_valid_frames if name == "valid" else s.num_train_subset_frames
    frames = drawn_frames(subset, number, derived_seed(s.seed, "sample", name))
    _write(_new_labels(run, alignment, subset, name, frames[:, None]), path)


def _new_labels(run: Run, alignment: int, subset: Subset, name: str, frames: npt.NDArray[np.int64]) -> Int32s:
    """Returns the new labels of some frames of a subset; frame numbers that are `NO_LABEL` stay so."""
    new_labels = np.full(frames.shape, NO_LABEL, np.int32)
    for split in range(run.settings.num_splits):
        first, last = (int(subset.starts[u]) for u in split_bounds(len(subset), split, run.settings.num_splits))
        path = run.aligned(alignment, split, name)
        labels = map_array(path)
        if labels.dtype != np.int32 or labels.shape != (last - first,):
            raise DataError(f"{path}: not the labels of {last - first} frames; delete it and run again")
        in_split = (frames >= first) & (frames < last)
        new_labels[in_split] = labels[frames[in_split] - first]
    return new_labels


def _write(labels: Int32s, path: Path) -> None:
    with atomic_write(path) as temporary, open(temporary, "wb") as f:
        np.save(f, labels)
