"""The LDA-like feature transform that the network applies to its spliced input.

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
    """Counts, sums and total scatter of spliced frames, in double precision, taken in as they come.

    Args:
        dim: of the spliced frames.
        num_classes: C.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        self.counts = np.zeros(num_classes)
        self.sums = np.zeros((num_classes, dim))
        self.scatter = np.zeros((dim, dim))

    def add(self, frames: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]) -> None:
        """Takes in frames (N, dim) and their classes (N,)."""
        x = frames.astype(np.float64)
        self.counts += np.bincount(labels, minlength=len(self.counts))
        np.add.at(self.sums, labels, x)
        self.scatter += x.T @ x

    def transform(self, within_class_factor: float) -> tuple[Floats, Floats]:
        """Weight (dim, dim) and bias (dim,).

        Projects so that the within-class covariance is I and the between-class one diagonal, with eigenvalues d_i;
        scales row i by sqrt((f + d_i) / (1 + d_i)) with f = within_class_factor, so that dimensions that tell
        classes apart come out with a larger variance; limits the singular values; centres the output.

        Raises:
            DataError: the frames do not span all dimensions, so that their covariance has no inverse.
        """
        count = self.counts.sum()
        if count == 0:
            raise DataError("feature transform: no frame counts, all are of silence classes")
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
    """The transform of the training subset's frames, spliced with the contexts of layer 0.

    Args:
        train: the training subset.
        info: of the corpus, for its classes and which of them are silence and get weight 0.
        offsets: of the spliced frames, contiguous.
        max_frames: from this number on, only each k-th utterance is looked at.
        within_class_factor: see `LdaStatistics.transform`.

    Raises:
        DataError: the covariance has no inverse.
    """
    num_classes = len(info.class_counts)
    stride = -(-int(train.starts[-1]) // max_frames)
    const = info.const_dim
    statistics = LdaStatistics(len(offsets) * (info.dim - const) + const, num_classes)
    keep = np.ones(num_classes, np.bool_)
    keep[info.silence] = False
    for i in range(0, len(train), stride):
        features, labels = train.utterance(i)
        chosen = np.flatnonzero(keep[labels])
        frames = windows(features[:, : info.dim - const], chosen, (-offsets[0], offsets[-1]), 1)
        joined = np.concatenate((frames.reshape(len(chosen), -1), features[chosen, info.dim - const :]), axis=1)
        statistics.add(joined, labels[chosen])
    return statistics.transform(within_class_factor)


def write_transform(path: str | os.PathLike[str], weight: Floats, bias: Floats) -> None:
    """Writes a transform as one matrix, the bias its last column.

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_write(path) as temporary, open(temporary, "wb") as f:
        np.save(f, np.column_stack((weight, bias)))


def read_transform(path: str | os.PathLike[str]) -> tuple[Floats, Floats]:
    """The weight and bias that `write_transform` wrote.

    Raises:
        DataError: the file is missing or malformed.
    """
    matrix = np.array(map_array(Path(path)))
    if matrix.ndim != 2 or matrix.dtype != np.float64 or not np.isfinite(matrix).all():
        raise DataError(f"{path}: not a feature transform; delete it and run again")
    return matrix[:, :-1], matrix[:, -1]
