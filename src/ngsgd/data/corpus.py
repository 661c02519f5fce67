"""A prepared corpus on disk: what every source of data is turned into, and all that the later stages read.

A directory with ``corpus.json`` (see `CorpusInfo`) and for each subset (train, valid, test) three files:

- ``<subset>.features.npy`` (frames, dim) float32, all utterances one after the other, to be memory-mapped;
- ``<subset>.labels.npy`` (frames,) int32, the class (pdf-id) of each frame;
- ``<subset>.utterances.tsv``: utterance, frames, and the words spoken where they are known.

A corpus that takes long to prepare is prepared in parts, each a prepared corpus of its own; see `ngsgd.data.parts`.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import logging
import os
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ngsgd.errors import DataError
from ngsgd.files import atomic_write, require_regular_file, write_text

MAX_CLASSES = 1_000_000
SUBSETS = ("train", "valid", "test")

Float32s = npt.NDArray[np.float32]
Int32s = npt.NDArray[np.int32]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Utterance:
    """One utterance as a source of data gives it: features (frames, dim), labels (frames,), the words if known."""

    name: str
    features: Float32s
    labels: Int32s
    text: str = ""


@dataclass(frozen=True)
class WordModel:
    """A word as a left-to-right chain of classes, with the log-probability of staying in each and of leaving it."""

    word: str
    classes: tuple[int, ...]
    log_stay: tuple[float, ...]
    log_leave: tuple[float, ...]


@dataclass(frozen=True)
class CorpusInfo:
    """What ``corpus.json`` says.

    Attributes:
        dim: of the features.
        class_counts: frames of each class in the training subset; their number is the number of classes.
        num_utterances, num_frames: of each subset.
        sha256: of each subset's features and labels, by which a run knows that its data is still the same.
        silence: classes that do not count for the feature transform.
        dropped: name and reason of each utterance that was left out.
        words: for corpora of isolated words, how each is made of classes; empty otherwise.
        const_dim: how many of the dimensions, the last ones, are the same over many frames (i-vectors).
        transition_model: for Kaldi's pdf-ids, see `ngsgd.kaldi.transition.transitions_to_text`; None otherwise.
        phones: where the classes are the states of phones, as many of each and phone by phone: their names, silence
            first, of which the utterances' texts consist; empty otherwise.
    """

    dim: int
    class_counts: list[int]
    num_utterances: dict[str, int]
    num_frames: dict[str, int]
    sha256: dict[str, str]
    silence: list[int]
    dropped: dict[str, str]
    words: list[WordModel]
    const_dim: int = 0
    transition_model: str | None = None
    phones: tuple[str, ...] = ()


class _NpyWriter:
    """An .npy file written piece by piece: numpy pads the header so that its first dimension can grow in place."""

    def __init__(self, f: IO[bytes], tail: tuple[int, ...], dtype: type[np.generic], hash_: hashlib._Hash) -> None:
        self._hash = hash_
        self._f, self._tail, self._dtype = f, tail, np.dtype(dtype)
        self.length = 0
        self._write_header()

    def _write_header(self) -> None:
        self._f.seek(0)
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.length, *self._tail)}
        np.lib.format.write_array_header_1_0(self._f, header)

    def append(self, array: npt.NDArray[Any]) -> None:
        data = np.ascontiguousarray(array, self._dtype).tobytes()
        self._f.write(data)
        self._hash.update(data)
        self.length += len(array)

    def finish(self) -> None:
        self._write_header()


class SubsetSummary(NamedTuple):
    """What `write_subset` wrote: the numbers of utterances and frames, and a hash of features and labels."""

    utterances: int
    frames: int
    sha256: str


def write_subset(directory: Path, subset: str, utterances: Iterable[Utterance], dim: int) -> SubsetSummary:
    """Writes one subset, streaming: memory does not grow with it.

    Raises:
        OSError: a file cannot be written; none of the three appears then.
    """
    hash_ = hashlib.sha256()
    with contextlib.ExitStack() as stack:
        features_path, labels_path, table_path = (
            stack.enter_context(atomic_write(p)) for p in _paths(directory, subset)
        )
        features = _NpyWriter(stack.enter_context(open(features_path, "wb")), (dim,), np.float32, hash_)
        labels = _NpyWriter(stack.enter_context(open(labels_path, "wb")), (), np.int32, hash_)
        table = stack.enter_context(open(table_path, "w", encoding="utf-8", newline=""))
        rows = csv.writer(table, delimiter="\t", lineterminator="\n")
        rows.writerow(("utterance", "frames", "text"))
        count = 0
        for utterance in utterances:
            features.append(utterance.features)
            labels.append(utterance.labels)
            rows.writerow((utterance.name, len(utterance.labels), utterance.text))
            count += 1
        features.finish()
        labels.finish()
    return SubsetSummary(count, labels.length, hash_.hexdigest())


def _paths(directory: Path, subset: str) -> tuple[Path, Path, Path]:
    return (
        directory / f"{subset}.features.npy",
        directory / f"{subset}.labels.npy",
        directory / f"{subset}.utterances.tsv",
    )


class UtteranceFilter:
    """Checks utterances on their way into a corpus: drops the bad ones, and stops when they are too many.

    Args:
        dim: of the features.
        num_classes: labels lie between 0 and num_classes - 1.
        max_bad_share: of the utterances, beyond which `check` raises.
    """

    def __init__(self, dim: int, num_classes: int, max_bad_share: float) -> None:
        self.dim, self.num_classes, self.max_bad_share = dim, num_classes, max_bad_share
        self.num_dropped = 0
        self.dropped: dict[str, str] = {}
        self.class_counts = np.zeros(num_classes, np.int64)

    def drop(self, name: str, reason: str) -> None:
        """Leaves an utterance out, with a warning."""
        reason = " ".join(reason.split())[:500]
        log.warning("utterance %s dropped: %s", name, reason)
        self.num_dropped += 1
        self.dropped[name] = reason

    def accept(self, utterances: Iterable[Utterance], *, count_classes: bool = False) -> Iterator[Utterance]:
        """The good ones among the utterances."""
        for utterance in utterances:
            if reason := self._fault(utterance):
                self.drop(utterance.name, reason)
                continue
            if count_classes:
                self.class_counts += np.bincount(utterance.labels, minlength=self.num_classes)
            yield utterance

    def _fault(self, utterance: Utterance) -> str | None:
        features, labels = utterance.features, utterance.labels
        if features.ndim != 2 or features.shape[1] != self.dim:
            return f"features of shape {features.shape}, expected (frames, {self.dim})"
        if len(features) == 0:
            return "no frames"
        if labels.shape != (len(features),):
            return f"{len(features)} frames of features, {labels.size} labels"
        if not np.isfinite(features).all():
            return "features that are not finite"
        outside = (labels < 0) | (labels >= self.num_classes)
        if outside.any():
            return f"label {labels[outside][0]} is outside 0 - {self.num_classes - 1}; was it made with other classes?"
        return None

    def check(self, num_utterances: int) -> None:
        """Sees that few enough of the utterances, of which there were that many in all, have been left out.

        Raises:
            DataError: there was none, or the share of bad ones is above max_bad_share.
        """
        if num_utterances == 0:
            raise DataError("the corpus is empty")
        if self.num_dropped > self.max_bad_share * num_utterances:
            name, reason = next(iter(self.dropped.items()))
            raise DataError(
                f"{self.num_dropped} of {num_utterances} utterances are bad, more than max_bad_utterance_share = "
                f"{self.max_bad_share:g}; the first is {name}: {reason}"
            )


def write_info(directory: Path, info: CorpusInfo) -> None:
    """Writes ``corpus.json``: last, so that its presence says that the corpus is whole.

    Raises:
        OSError: the file cannot be written.
    """
    write_text(directory / "corpus.json", json.dumps(asdict(info), indent=1) + "\n")


def read_info(directory: str | os.PathLike[str]) -> CorpusInfo:
    """``corpus.json`` of a prepared corpus.

    Raises:
        DataError: the file is missing or malformed.
    """
    path = Path(directory) / "corpus.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        words = [
            WordModel(w["word"], *map(tuple, (w["classes"], w["log_stay"], w["log_leave"]))) for w in fields["words"]
        ]
        info = CorpusInfo(**(fields | {"words": words, "phones": tuple(fields.get("phones", ()))}))
        if not all(isinstance(info.num_frames[subset], int) for subset in SUBSETS):
            raise ValueError("num_frames")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(f"{path}: not the description of a prepared corpus ({e}); delete it and run again") from None
    return info


def split_bounds(num_utterances: int, split: int, num_splits: int) -> tuple[int, int]:
    """First utterance of a split (from 0) and the one after its last."""
    return num_utterances * split // num_splits, num_utterances * (split + 1) // num_splits


class Subset:
    """The utterances of one subset of a prepared corpus, memory-mapped.

    Attributes:
        features: (frames, dim) float32 of all utterances.
        labels: (frames,) int32.
        names, texts: of each utterance.
        starts: (utterances + 1,) where each utterance begins in features and labels, and where the last one ends.

    Raises:
        DataError: a file is missing, truncated or does not agree with the others.
    """

    def __init__(self, directory: str | os.PathLike[str], subset: str) -> None:
        features_path, labels_path, table_path = _paths(Path(directory), subset)
        self.features: Float32s = map_array(features_path)
        self.labels: Int32s = map_array(labels_path)
        try:
            with open(table_path, encoding="utf-8", newline="") as f:
                rows = list(csv.DictReader(f, delimiter="\t"))
            self.names = [row["utterance"] for row in rows]
            self.texts = [row["text"] for row in rows]
            frames = np.array([int(row["frames"]) for row in rows], np.int64)
        except (OSError, KeyError, ValueError, TypeError) as e:
            raise DataError(f"{table_path}: not a table of utterances ({e})") from None
        self.starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(frames)))
        if self.features.ndim != 2 or self.features.dtype != np.dtype("<f4") or self.labels.dtype != np.dtype("<i4"):
            raise DataError(f"{features_path}: not the features of a prepared corpus; delete the folder and run again")
        if not len(self.features) == len(self.labels) == self.starts[-1]:
            raise DataError(
                f"{table_path} speaks of {self.starts[-1]} frames, {features_path.name} has {len(self.features)}, "
                f"{labels_path.name} has {len(self.labels)}; delete the folder and run again"
            )

    def __len__(self) -> int:
        return len(self.names)

    def utterance(self, i: int) -> tuple[Float32s, Int32s]:
        """Features and labels of utterance i, as views of the files."""
        rows = slice(self.starts[i], self.starts[i + 1])
        return self.features[rows], self.labels[rows]


def map_array(path: Path) -> npt.NDArray[Any]:
    """An .npy file as an array that reads from disk what is looked at.

    Raises:
        DataError: the file is missing, truncated or not an array.
    """
    try:
        require_regular_file(path)
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: no such file" if isinstance(e, FileNotFoundError) else f"{path}: {e}") from None
    damaged = f"{path}: not a whole array; delete it and run again to remake it"
    try:
        # An array of length 0 cannot be mapped, and need not be.
        with open(path, "rb") as f:
            np.lib.format.read_magic(f)
            shape, _, dtype = np.lib.format.read_array_header_1_0(f)
        empty = 0 in shape
        array = np.load(path, mmap_mode=None if empty else "r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError, TypeError, OverflowError, MemoryError):
        raise DataError(damaged) from None
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
        raise DataError(damaged)
    return array
