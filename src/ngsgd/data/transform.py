"""LDA-like feature transform for the network's spliced input.

Source: Kaldi's ``nnet2/get-feature-transform.cc`` and ``transform/lda-estimate.cc``.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.linalg

from ngsgd.data.corpus import CorpusInfo, Subset, map_array
from ngsgd.data.egs import windows
from ngsgd.errors import DataError
from ngsgd.files import atomic_write

MAX_SINGULAR_VALUE = 5.0

Floats = npt.NDArray[np.float64]


class LdaStatistics:
    """Accumulates counts, sums and total scatter of spliced frames, in double precision.

    Args:
        dim: dimension of the spliced frames.
        num_classes: C, number of classes.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        self.counts = np.zeros(num_classes)
        self.sums = np.zeros((num_classes, dim))
        self.scatter = np.zeros((dim, dim))

    def add(self, frames: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]) -> None:
        """Adds frames (N, dim) and their classes (N,)."""
        x = frames.astype(np.float64)
        self.counts += np.bincount(labels, minlength=len(self.counts))
        np.add.at(self.sums, labels, x)
        self.scatter += x.T @ x

    def transform(self, within_class_factor: float) -> tuple[Floats, Floats]:
        """Returns the weight (dim, dim) and bias (dim,) of the transform.

        It makes the within-class covariance I and the between-class covariance diagonal, with eigenvalues d_i. Row i is
        scaled by sqrt((f + d_i) / (1 + d_i)) with f = within_class_factor, so that discriminative dimensions get a
        larger variance. The singular values are limited to `MAX_SINGULAR_VALUE`, and the output is centred.

        Raises:
            DataError: there are no frames, or their within-class covariance is singular.
        """
        count = self.counts.sum()
        if count == 0:
            raise DataError("feature transform: no frame counts, all are silence")
        mean = self.sums.sum(axis=0) / count
        seen = self.counts > 0
        class_means = self.sums[seen] / self.counts[seen, None]
        total = self.scatter / count - np.outer(mean, mean)
        between = (class_means.T * (self.counts[seen] / count)) @ class_means - np.outer(mean, mean)
        try:
            L = scipy.linalg.cholesky(total - between, lower=True)
        except scipy.linalg.LinAlgError:
            raise DataError(
                "feature transform: the within-class covariance has no inverse; some feature is constant or a "
                "combination of others, or there are too few frames"
            ) from None
        whitened = scipy.linalg.solve_triangular(L, between, lower=True)
        whitened = scipy.linalg.solve_triangular(L, whitened.T, lower=True)
        d, U = np.linalg.eigh((whitened + whitened.T) / 2)
        d, U = np.maximum(d[::-1], 0.0), U[:, ::-1]
        weight = scipy.linalg.solve_triangular(L, U, lower=True, trans="T").T
        weight *= np.sqrt((within_class_factor + d) / (1.0 + d))[:, None]
        left, singular, right = np.linalg.svd(weight)
        weight = (left * np.minimum(singular, MAX_SINGULAR_VALUE)) @ right
        return weight, -weight @ mean


def estimate_transform(
    train: Subset, info: CorpusInfo, offsets: tuple[int, ...], max_frames: int, within_class_factor: float
) -> tuple[Floats, Floats]:
    """Estimates the transform from the training subset, spliced as by layer 0; frames of silence are ignored.

    Args:
        train: the training subset.
        info: the corpus description.
        offsets: frame offsets of the splice, contiguous.
        max_frames: if there are more frames, only every k-th utterance is used, k = frames / max_frames rounded up.
        within_class_factor: see `LdaStatistics.transform`.

    Returns:
        Weight and bias, see `LdaStatistics.transform`.

    Raises:
        DataError: there are no frames, or their within-class covariance is singular.
    """
    num_classes = len(info.class_counts)
    stride = -(-int(train.starts[-1]) // max_frames)
    const = info.const_dim
    statistics = LdaStatistics(len(offsets) * (info.dim - const) + const, num_classes)
    for i in range(0, len(train), stride):
        features, labels = train.utterance(i)
        chosen = np.flatnonzero(~train.silence_of(i))
        frames = windows(features[:, : info.dim - const], chosen, (-offsets[0], offsets[-1]), 1)
        joined = np.concatenate((frames.reshape(len(chosen), -1), features[chosen, info.dim - const :]), axis=1)
        statistics.add(joined, labels[chosen])
    return statistics.transform(within_class_factor)


def write_transform(path: str | os.PathLike[str], weight: Floats, bias: Floats) -> None:
    """Writes a transform as one matrix, with the bias as its last column.

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_write(path) as temporary, open(temporary, "wb") as f:
        np.save(f, np.column_stack((weight, bias)))


def read_transform(path: str | os.PathLike[str]) -> tuple[Floats, Floats]:
    """Reads the weight and bias from a file of `write_transform`.

    Raises:
        DataError: the file is missing or malformed.
    """
    matrix = np.array(map_array(Path(path)))
    if matrix.ndim != 2 or matrix.dtype != np.float64 or not np.isfinite(matrix).all():
        raise DataError(f"{path}: not a feature transform; delete it and run again")
    return matrix[:, :-1], matrix[:, -1]
