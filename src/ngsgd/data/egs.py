"""Training examples ("egs"): pieces of utterances with their context, in randomised archives on disk.

An example is ``frames_per_eg`` successive labels and the frames that they need. An archive is an .npy file of
records, memory-mapped: field ``features`` (left + frames_per_eg + right, dim) float32 and field ``labels``
(frames_per_eg,) int32, `NO_LABEL` where an utterance ended before.

They are made in two steps, each a fan-out with memory that does not grow with the corpus: `distribute` cuts one split
of the utterances into examples and assigns them to the archives in turn, in a file with a part for each archive;
`shuffle` puts one archive's parts together in random order. Neither the splits nor the order in which they are
made changes an archive.

Source: ``steps/nnet2/get_egs2.sh`` of Kaldi.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ngsgd.data.corpus import Float32s, Int32s, Subset, map_array, read_info, split_bounds
from ngsgd.data.quantized import CODES, decode, encode
from ngsgd.errors import DataError
from ngsgd.files import atomic_write, derived_seed

NO_LABEL = -1
SHUFFLE_BUFFER = 5000  # examples that a job reads and shuffles at a time; the archives are shuffled as they lie
WRITE_BUFFER = 4096  # examples gathered at a time
DISK_RESERVE = 64 * 2**20  # bytes to leave free

Archive = npt.NDArray[np.void]


@dataclass(frozen=True)
class Layout:
    """How a corpus is cut into archives.

    Attributes:
        num_archives: A.
        frames_per_eg: labels in an example.
    """

    num_archives: int
    frames_per_eg: int

    @classmethod
    def of(cls, num_frames: int, frames_per_eg: int, samples_per_iter: int) -> Layout:
        """The layout for a number of training frames.

        Where the data is so little that a single archive would not be full, frames_per_eg is lowered, so that there
        are more examples. Utterances are cut one by one, so that there are some more examples than frames /
        frames_per_eg, and an archive may hold a few more than samples_per_iter, as the reference's do.
        """
        while frames_per_eg > 1 and num_frames // ((frames_per_eg - 1) * samples_per_iter) == 0:
            frames_per_eg -= 1
        return cls(num_frames // (frames_per_eg * samples_per_iter) + 1, frames_per_eg)


def corpus_layout(corpus: str | os.PathLike[str], frames_per_eg: int, samples_per_iter: int) -> Layout:
    """The layout of a prepared corpus.

    Raises:
        DataError: the corpus cannot be read.
    """
    return Layout.of(read_info(corpus).num_frames["train"], frames_per_eg, samples_per_iter)


def record_type(frames_per_eg: int, context: tuple[int, int], dim: int, bits: int = 32) -> np.dtype[np.void]:
    """The type of an example in an archive, with features of 8, 16 or 32 bits."""
    shape = (sum(context) + frames_per_eg, dim)
    labels = ("labels", "<i4", (frames_per_eg,))
    if bits == 32:
        return np.dtype([("features", "<f4", shape), labels])
    return np.dtype([("features", CODES[bits], shape), ("low", "<f4", (dim,)), ("step", "<f4", (dim,)), labels])


def windows(
    features: Float32s, starts: npt.NDArray[np.int64], context: tuple[int, int], length: int, const_dim: int = 0
) -> Float32s:
    """Pieces of an utterance with their context, its first and last frame repeated beyond its edges.

    Args:
        features: (T, dim).
        starts: (n,) first frame of each piece.
        context: frames before and after.
        length: frames of a piece.
        const_dim: dimensions, the last ones, of which all frames of a piece get the mean, as the reference's do.

    Returns:
        (n, context[0] + length + context[1], dim).
    """
    rows = starts[:, None] + np.arange(-context[0], length + context[1])
    pieces: Float32s = features[np.clip(rows, 0, len(features) - 1)]
    if const_dim:
        pieces[..., -const_dim:] = pieces[..., -const_dim:].mean(axis=1, keepdims=True, dtype=np.float64)
    return pieces


def _num_examples(subset: Subset, frames_per_eg: int) -> npt.NDArray[np.int64]:
    """Of each utterance."""
    return -(-np.diff(subset.starts) // frames_per_eg)


def _part_sizes(first: int, last: int, num_archives: int) -> npt.NDArray[np.int64]:
    """How many of the examples first ... last - 1 are dealt to each archive: example g goes to archive g mod A."""
    a = np.arange(num_archives)
    return (last - a + num_archives - 1) // num_archives - (first - a + num_archives - 1) // num_archives


def check_disk(directory: Path, num_bytes: int) -> None:
    """Sees that there is room before anything is written.

    Raises:
        DataError: there is not.
    """
    free = shutil.disk_usage(directory).free
    if num_bytes + DISK_RESERVE > free:
        raise DataError(
            f"{directory}: the examples need {num_bytes / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free; "
            "make room, or put results/ on another disk"
        )


def distribute(
    subset: Subset,
    layout: Layout,
    context: tuple[int, int],
    split: int,
    num_splits: int,
    path: Path,
    const_dim: int = 0,
    bits: int = 32,
) -> None:
    """Writes the examples of one split of the utterances, those of each archive together, in the utterances' order.

    Raises:
        DataError: the disk has too little room for the examples of all splits.
        OSError: the file cannot be written.
    """
    dim = subset.features.shape[1]
    A, length = layout.num_archives, layout.frames_per_eg
    record = record_type(length, context, dim, bits)
    counts = _num_examples(subset, length)
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts)))
    path.parent.mkdir(parents=True, exist_ok=True)
    # The parts and the archives exist side by side; the parts that other splits have written are on the disk already.
    begin, end = split_bounds(len(subset), split, num_splits)
    check_disk(path.parent, int(offsets[-1] + offsets[-1] - offsets[begin]) * record.itemsize)
    first = int(offsets[begin])
    sizes = _part_sizes(first, int(offsets[end]), A)
    part_starts = np.cumsum(sizes) - sizes
    with atomic_write(path) as temporary:
        out = _create(temporary, int(sizes.sum()), record)
        for i in range(begin, end):
            features, labels = subset.utterance(i)
            g = np.arange(offsets[i], offsets[i + 1])
            archive = g % A
            slots = part_starts[archive] + (g - first) // A
            starts = (g - offsets[i]) * length
            pieces = windows(features, starts, context, length, const_dim)
            if bits == 32:
                out["features"][slots] = pieces
            else:
                out["features"][slots], out["low"][slots], out["step"][slots] = encode(pieces, bits)
            padded = np.full(len(g) * length, NO_LABEL, np.int32)
            padded[: len(labels)] = labels
            out["labels"][slots] = padded.reshape(len(g), length)
        _flush(out)


def shuffle(subset: Subset, layout: Layout, archive: int, seed: int, parts: list[Path], path: Path) -> None:
    """Writes one archive: its parts of all splits, in random order.

    Args:
        subset: the training subset that was dealt.
        layout: as it was dealt.
        archive: which, from 0.
        seed: of the order, which depends on nothing else.
        parts: the files that `distribute` wrote, by split.
        path: of the archive.

    Raises:
        DataError: a part is missing or truncated.
        OSError: the file cannot be written.
    """
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(_num_examples(subset, layout.frames_per_eg))))
    own: list[Archive] = []
    for split, part in enumerate(parts):
        begin, end = (int(offsets[u]) for u in split_bounds(len(subset), split, len(parts)))
        sizes = _part_sizes(begin, end, layout.num_archives)
        start = int(sizes[:archive].sum())
        distributed = map_array(part)
        if len(distributed) != sizes.sum():
            raise DataError(f"{part}: {len(distributed)} examples, expected {sizes.sum()}; delete it and run again")
        own.append(distributed[start : start + int(sizes[archive])])
    ends = np.cumsum([len(part) for part in own])
    order = _order(seed, archive, int(ends[-1]))
    with atomic_write(path) as temporary:
        out = _create(temporary, len(order), own[0].dtype)
        for block in range(0, len(order), WRITE_BUFFER):
            wanted = order[block : block + WRITE_BUFFER]
            source = np.searchsorted(ends, wanted, side="right")
            for s in np.unique(source):
                here = np.flatnonzero(source == s)
                out[block + here] = own[s][wanted[here] - (ends[s] - len(own[s]))]
        _flush(out)


def sample_frames(
    subset: Subset, num_frames: int, context: tuple[int, int], seed: int, path: Path, const_dim: int = 0
) -> None:
    """Writes an archive of single frames drawn at random from all of a subset, without repetition.

    Raises:
        DataError: the subset is empty.
        OSError: the file cannot be written.
    """
    chosen = drawn_frames(subset, num_frames, seed)
    owners = np.searchsorted(subset.starts, chosen, side="right") - 1
    with atomic_write(path) as temporary:
        out = _create(temporary, len(chosen), record_type(1, context, subset.features.shape[1]))
        for i in np.unique(owners):
            slots = np.flatnonzero(owners == i)
            features, labels = subset.utterance(int(i))
            starts = chosen[slots] - subset.starts[i]
            out["features"][slots] = windows(features, starts, context, 1, const_dim)
            out["labels"][slots] = labels[starts][:, None]
        _flush(out)


def drawn_frames(subset: Subset, num_frames: int, seed: int) -> npt.NDArray[np.int64]:
    """The frames of a subset that `sample_frames` takes, rising.

    Raises:
        DataError: the subset is empty.
    """
    total = int(subset.starts[-1])
    if total == 0:
        raise DataError("no frame to draw from; hold out at least one utterance")
    return np.sort(np.random.default_rng(seed).choice(total, size=min(num_frames, total), replace=False))


def archive_frames(subset: Subset, layout: Layout, archive: int, seed: int) -> npt.NDArray[np.int64]:
    """The frames of a subset that one archive's labels are of, as `distribute` and `shuffle` make it.

    Returns:
        (examples, frames_per_eg); `NO_LABEL` where an utterance ended before.
    """
    length = layout.frames_per_eg
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(_num_examples(subset, length))))
    own = np.arange(archive, int(offsets[-1]), layout.num_archives)
    g = own[_order(seed, archive, len(own))]
    utterance = np.searchsorted(offsets, g, side="right") - 1
    first = subset.starts[utterance] + (g - offsets[utterance]) * length
    frames = first[:, None] + np.arange(length)
    frames[frames >= subset.starts[utterance + 1][:, None]] = NO_LABEL
    return frames


def _order(seed: int, archive: int, length: int) -> npt.NDArray[np.int64]:
    """The order in which an archive has the examples that were dealt to it."""
    return np.random.default_rng(derived_seed(seed, "shuffle", archive)).permutation(length)


def _create(path: Path, length: int, record: np.dtype[np.void]) -> Archive:
    if length == 0:  # an empty file cannot be mapped
        with open(path, "wb") as f:
            np.save(f, np.empty(0, record))
        return np.empty(0, record)
    archive = np.lib.format.open_memmap(path, mode="w+", dtype=record, shape=(length,))
    # Takes the room on the disk now: where there is none, writing to mapped memory would end the process by a signal.
    with open(path, "rb+") as f:
        os.posix_fallocate(f.fileno(), 0, path.stat().st_size)
    return archive


def _flush(archive: Archive) -> None:
    if isinstance(archive, np.memmap):
        archive.flush()


@dataclass(frozen=True)
class Examples:
    """An archive as it is read, from disk as it is looked at.

    Attributes:
        features: (examples, left + frames_per_eg + right, dim) float32, or codes.
        labels: (examples, frames_per_eg) int32, `NO_LABEL` where there is none.
        low, step: (examples, dim) float32 each, what codes stand for; None where there are none.
    """

    features: npt.NDArray[Any]
    labels: Int32s
    low: Float32s | None = None
    step: Float32s | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, rows: npt.NDArray[np.int64], frames: slice) -> Float32s:
        """The features of some examples at some of their frames, a new array (rows, frames, dim)."""
        gathered = np.ascontiguousarray(self.features[rows, frames])
        if self.low is None or self.step is None:
            return gathered
        return decode(gathered, self.low[rows], self.step[rows])


def open_archive(path: str | os.PathLike[str], labels: str | os.PathLike[str] | None = None) -> Examples:
    """An archive, memory-mapped.

    Args:
        path: of the archive.
        labels: file with other labels for it, see `ngsgd.data.relabelling`; None for its own.

    Raises:
        DataError: a file is missing, truncated, or not an archive of examples.
    """
    archive: Archive = map_array(Path(path))
    foreign = DataError(f"{path}: not an archive of examples")
    try:
        frames, dim = archive.dtype["features"].shape
        (length,) = archive.dtype["labels"].shape
        known = [record_type(length, (0, frames - length), dim, bits) for bits in (8, 16, 32)]
    except (KeyError, ValueError):
        raise foreign from None
    if archive.dtype not in known or archive.ndim != 1:
        raise foreign
    own = Examples(archive["features"], archive["labels"])
    if archive.dtype["features"].base != np.dtype("<f4"):
        own = replace(own, low=archive["low"], step=archive["step"])
    if labels is None:
        return own
    other = map_array(Path(labels))
    if other.dtype != np.dtype("<i4") or other.shape != own.labels.shape:
        raise DataError(f"{labels}: not the labels of {path}; delete it and run again")
    return replace(own, labels=other)


def minibatches(
    archive: Examples, frame: int, context: tuple[int, int], needed: tuple[int, int], size: int, seed: int | None
) -> Iterator[tuple[Float32s, Int32s]]:
    """The examples of one label position, in minibatches; each reads from disk only what it gives.

    The archive is read in blocks of `SHUFFLE_BUFFER` successive examples, the blocks in random order and shuffled
    each, so that neither memory nor the disk's head has to reach for the whole of it.

    Args:
        archive: as `open_archive` gives it.
        frame: the label position, from 0.
        context: frames of context before and after the labels in the archive.
        needed: the context that the network takes, at most that.
        size: of a minibatch; the last one may be smaller.
        seed: of the order; None for the order of the archive.

    Yields:
        Features (B, needed left + 1 + needed right, dim) and labels (B,), both new arrays.
    """
    window = slice(context[0] - needed[0] + frame, context[0] + frame + needed[1] + 1)
    rng = None if seed is None else np.random.default_rng(seed)
    begins = np.arange(0, len(archive), SHUFFLE_BUFFER)
    if rng is not None:
        rng.shuffle(begins)
    waiting = np.empty(0, np.int64)
    for number, begin in enumerate(begins):
        labels = archive.labels[begin : begin + SHUFFLE_BUFFER, frame]
        found = begin + np.flatnonzero(labels != NO_LABEL)
        if rng is not None:
            rng.shuffle(found)
        waiting = np.concatenate((waiting, found))
        last = number == len(begins) - 1
        whole_batches = len(waiting) if last else len(waiting) // size * size
        for i in range(0, whole_batches, size):
            yield _gather(archive, waiting[i : min(i + size, whole_batches)], frame, window)
        waiting = waiting[whole_batches:]


def _gather(archive: Examples, rows: npt.NDArray[np.int64], frame: int, window: slice) -> tuple[Any, Any]:
    return archive.gather(rows, window), archive.labels[rows, frame]
