"""Training examples ("egs"): pieces of utterances with their context, in randomised archives on disk.

An example is ``frames_per_eg`` consecutive labels and the frames that they need. An archive is a memory-mapped .npy
file of records with the fields ``features`` (left + frames_per_eg + right, dim), float32 or the codes of
`ngsgd.data.quantized`, and ``labels`` (frames_per_eg,) int32, `NO_LABEL` after the end of an utterance.

Archives are made in two parallel steps, whose memory use does not grow with the corpus. `distribute` cuts one split of
the utterances into examples and assigns them to the archives in turn; its file has one section per archive. `shuffle`
joins one archive's sections in random order. An archive depends neither on the number of splits nor on the order in
which they are processed.

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
SHUFFLE_BUFFER = 5000  # examples that a job reads and shuffles at a time; the archives themselves are shuffled already
WRITE_BUFFER = 4096  # examples written at a time
DISK_RESERVE = 64 * 2**20  # bytes to leave free

Archive = npt.NDArray[np.void]


@dataclass(frozen=True)
class Layout:
    """Number of archives of a corpus, and size of their examples.

    Attributes:
        num_archives: A, number of archives.
        frames_per_eg: number of labels in an example.
    """

    num_archives: int
    frames_per_eg: int

    @classmethod
    def for_frames(cls, num_frames: int, frames_per_eg: int, samples_per_iter: int) -> Layout:
        """Returns the layout for a number of training frames.

        If the data does not fill one archive, frames_per_eg is lowered to get more examples. As in Kaldi, utterances
        are cut separately, so that there are slightly more examples than frames / frames_per_eg, and an archive may
        have slightly more than samples_per_iter.
        """
        while frames_per_eg > 1 and num_frames // ((frames_per_eg - 1) * samples_per_iter) == 0:
            frames_per_eg -= 1
        return cls(num_frames // (frames_per_eg * samples_per_iter) + 1, frames_per_eg)


def corpus_layout(corpus: str | os.PathLike[str], frames_per_eg: int, samples_per_iter: int) -> Layout:
    """Returns the layout for a prepared corpus.

    Raises:
        DataError: the corpus cannot be read.
    """
    return Layout.for_frames(read_info(corpus).num_frames["train"], frames_per_eg, samples_per_iter)


def record_type(frames_per_eg: int, context: tuple[int, int], dim: int, bits: int = 32) -> np.dtype[np.void]:
    """Returns the record type of an example whose features have 8, 16 or 32 bits."""
    shape = (sum(context) + frames_per_eg, dim)
    labels = ("labels", "<i4", (frames_per_eg,))
    if bits == 32:
        return np.dtype([("features", "<f4", shape), labels])
    return np.dtype([("features", CODES[bits], shape), ("low", "<f4", (dim,)), ("step", "<f4", (dim,)), labels])


def windows(
    features: Float32s, starts: npt.NDArray[np.int64], context: tuple[int, int], length: int, const_dim: int = 0
) -> Float32s:
    """Cuts pieces with context out of an utterance, whose first and last frames are repeated beyond its ends.

    Args:
        features: (T, dim).
        starts: (n,) first frame of each piece.
        context: numbers of frames before and after a piece.
        length: number of frames of a piece without context.
        const_dim: number of trailing dimensions that are replaced by their mean over the piece, as in Kaldi.

    Returns:
        (n, context[0] + length + context[1], dim).
    """
    rows = starts[:, None] + np.arange(-context[0], length + context[1])
    pieces: Float32s = features[np.clip(rows, 0, len(features) - 1)]
    if const_dim:
        pieces[..., -const_dim:] = pieces[..., -const_dim:].mean(axis=1, keepdims=True, dtype=np.float64)
    return pieces


def _num_examples(subset: Subset, frames_per_eg: int) -> npt.NDArray[np.int64]:
    """Returns the number of examples of each utterance."""
    return -(-np.diff(subset.starts) // frames_per_eg)


def _section_sizes(first: int, last: int, num_archives: int) -> npt.NDArray[np.int64]:
    """Returns how many of the examples first ... last - 1 go to each archive: example g goes to archive g mod A."""
    a = np.arange(num_archives)
    return (last - a + num_archives - 1) // num_archives - (first - a + num_archives - 1) // num_archives


def check_disk(directory: Path, num_bytes: int) -> None:
    """Checks that the disk has enough free space before anything is written.

    Raises:
        DataError: there is too little free space.
    """
    free = shutil.disk_usage(directory).free
    if num_bytes + DISK_RESERVE > free:
        raise DataError(
            f"{directory}: the examples need {num_bytes / 2**30:.2f} GiB, but {free / 2**30:.2f} GiB are free; "
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
    """Writes the examples of one split of the utterances, grouped by archive and otherwise in utterance order.

    Args:
        subset: the training subset.
        layout: number of archives and size of the examples.
        context: numbers of frames before and after the labels of an example.
        split: index of the split, from 0.
        num_splits: number of splits.
        path: file to write.
        const_dim: see `windows`.
        bits: bits of a feature value: 8, 16 or 32.

    Raises:
        DataError: the disk has too little free space for the examples of all splits.
        OSError: the file cannot be written.
    """
    dim = subset.features.shape[1]
    A, length = layout.num_archives, layout.frames_per_eg
    record = record_type(length, context, dim, bits)
    counts = _num_examples(subset, length)
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts)))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Space for all archives and the remaining parts, which exist together; earlier parts are on disk already.
    begin, end = split_bounds(len(subset), split, num_splits)
    check_disk(path.parent, int(offsets[-1] + offsets[-1] - offsets[begin]) * record.itemsize)
    first = int(offsets[begin])
    sizes = _section_sizes(first, int(offsets[end]), A)
    section_starts = np.cumsum(sizes) - sizes
    with atomic_write(path) as temporary:
        out = _create(temporary, int(sizes.sum()), record)
        for i in range(begin, end):
            features, labels = subset.utterance(i)
            g = np.arange(offsets[i], offsets[i + 1])
            archive = g % A
            slots = section_starts[archive] + (g - first) // A
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
    """Writes one archive: its sections of all parts, in random order.

    Args:
        subset: the training subset that was distributed.
        layout: the layout given to `distribute`.
        archive: index of the archive, from 0.
        seed: random seed; with the archive's index it determines the order.
        parts: the files that `distribute` wrote, ordered by split.
        path: file to write.

    Raises:
        DataError: a part is missing or truncated.
        OSError: the file cannot be written.
    """
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(_num_examples(subset, layout.frames_per_eg))))
    sections: list[Archive] = []
    for split, part in enumerate(parts):
        begin, end = (int(offsets[u]) for u in split_bounds(len(subset), split, len(parts)))
        sizes = _section_sizes(begin, end, layout.num_archives)
        start = int(sizes[:archive].sum())
        distributed = map_array(part)
        if len(distributed) != sizes.sum():
            raise DataError(f"{part}: {len(distributed)} examples, expected {sizes.sum()}; delete it and run again")
        sections.append(distributed[start : start + int(sizes[archive])])
    ends = np.cumsum([len(section) for section in sections])
    order = _order(seed, archive, int(ends[-1]))
    with atomic_write(path) as temporary:
        out = _create(temporary, len(order), sections[0].dtype)
        for block in range(0, len(order), WRITE_BUFFER):
            wanted = order[block : block + WRITE_BUFFER]
            source = np.searchsorted(ends, wanted, side="right")
            for s in np.unique(source):
                rows = np.flatnonzero(source == s)
                out[block + rows] = sections[s][wanted[rows] - (ends[s] - len(sections[s]))]
        _flush(out)


def sample_frames(
    subset: Subset, num_frames: int, context: tuple[int, int], seed: int, path: Path, const_dim: int = 0
) -> None:
    """Writes an archive of single frames drawn at random, without replacement, from a whole subset.

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
    """Returns the indices of the frames that `sample_frames` draws, in ascending order.

    Raises:
        DataError: the subset is empty.
    """
    total = int(subset.starts[-1])
    if total == 0:
        raise DataError("no frame to draw from; hold out at least one utterance (num_valid_utterances)")
    return np.sort(np.random.default_rng(seed).choice(total, size=min(num_frames, total), replace=False))


def archive_frames(subset: Subset, layout: Layout, archive: int, seed: int) -> npt.NDArray[np.int64]:
    """Returns the frame indices of the labels of an archive that `distribute` and `shuffle` make.

    Returns:
        (examples, frames_per_eg); `NO_LABEL` after the end of an utterance.
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
    """Returns the permutation that shuffles an archive's examples."""
    return np.random.default_rng(derived_seed(seed, "shuffle", archive)).permutation(length)


def _create(path: Path, length: int, record: np.dtype[np.void]) -> Archive:
    if length == 0:  # an empty file cannot be mapped
        with open(path, "wb") as f:
            np.save(f, np.empty(0, record))
        return np.empty(0, record)
    archive = np.lib.format.open_memmap(path, mode="w+", dtype=record, shape=(length,))
    # Allocates the space now: on a full disk, writing to mapped memory would kill the process with a signal.
    with open(path, "rb+") as f:
        os.posix_fallocate(f.fileno(), 0, path.stat().st_size)
    return archive


def _flush(archive: Archive) -> None:
    if isinstance(archive, np.memmap):
        archive.flush()


@dataclass(frozen=True)
class Examples:
    """A memory-mapped archive.

    Attributes:
        features: (examples, left + frames_per_eg + right, dim) float32, or codes of 8 or 16 bits.
        labels: (examples, frames_per_eg) int32, `NO_LABEL` after the end of an utterance.
        low, step: (examples, dim) float32 each, smallest value and step of the codes; None for float32 features.
    """

    features: npt.NDArray[Any]
    labels: Int32s
    low: Float32s | None = None
    step: Float32s | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, rows: npt.NDArray[np.int64], frames: slice) -> Float32s:
        """Returns the features of some examples at some of their frames, as a new float32 array (rows, frames, dim)."""
        gathered = np.ascontiguousarray(self.features[rows, frames])
        if self.low is None or self.step is None:
            return gathered
        return decode(gathered, self.low[rows], self.step[rows])


def open_archive(path: str | os.PathLike[str], labels: str | os.PathLike[str] | None = None) -> Examples:
    """Opens an archive, memory-mapped.

    Args:
        path: the archive.
        labels: file with labels that replace those of the archive, as realignment writes them; None to keep its own.

    Raises:
        DataError: a file is missing, truncated, or not an archive of examples.
    """
    archive: Archive = map_array(Path(path))
    not_an_archive = DataError(f"{path}: not an archive of examples")
    try:
        frames, dim = archive.dtype["features"].shape
        (length,) = archive.dtype["labels"].shape
        known = [record_type(length, (0, frames - length), dim, bits) for bits in (8, 16, 32)]
    except (KeyError, ValueError):
        raise not_an_archive from None
    if archive.dtype not in known or archive.ndim != 1:
        raise not_an_archive
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
    """Yields the examples of one label position in minibatches; reads only these from disk.

    The archive is read in blocks of `SHUFFLE_BUFFER` consecutive examples. Blocks come in random order and are shuffled
    separately, so that memory use does not grow with the archive and disk reads are local.

    Args:
        archive: the opened archive.
        frame: label position, from 0.
        context: numbers of frames before and after the labels in the archive.
        needed: numbers of frames before and after that the network needs, at most those of ``context``.
        size: minibatch size; the last one may be smaller.
        seed: random seed of the order; None for the order of the archive.

    Yields:
        Features (B, needed left + 1 + needed right, dim) and labels (B,), both new arrays.
    """
    window = slice(context[0] - needed[0] + frame, context[0] + frame + needed[1] + 1)
    rng = None if seed is None else np.random.default_rng(seed)
    begins = np.arange(0, len(archive), SHUFFLE_BUFFER)
    if rng is not None:
        rng.shuffle(begins)
    pending = np.empty(0, np.int64)
    for number, begin in enumerate(begins):
        labels = archive.labels[begin : begin + SHUFFLE_BUFFER, frame]
        labelled = begin + np.flatnonzero(labels != NO_LABEL)
        if rng is not None:
            rng.shuffle(labelled)
        pending = np.concatenate((pending, labelled))
        last = number == len(begins) - 1
        whole_batches = len(pending) if last else len(pending) // size * size
        for i in range(0, whole_batches, size):
            yield _gather(archive, pending[i : min(i + size, whole_batches)], frame, window)
        pending = pending[whole_batches:]


def _gather(archive: Examples, rows: npt.NDArray[np.int64], frame: int, window: slice) -> tuple[Any, Any]:
    return archive.gather(rows, window), archive.labels[rows, frame]
