"""The prepared corpus on disk: the form into which every data source is converted and which all later stages read.

It is a directory with ``corpus.json`` (see `CorpusInfo`) and three files for each subset (train, valid, test):

- ``<subset>.features.npy`` (frames, dim) float32, all utterances concatenated, for memory-mapping;
- ``<subset>.labels.npy`` (frames,) int32, the class (pdf-id) of each frame; -1 in test utterances without alignment;
- ``<subset>.silence.npy`` (frames,) bool, whether the frame is silence;
- ``<subset>.utterances.tsv``: name, number of frames, speaker and, if known, transcript of each utterance.

A large corpus is prepared in parts, each of which is itself a prepared corpus; see `ngsgd.data.parts`.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import logging
import os
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ngsgd.errors import DataError
from ngsgd.files import atomic_write, require_regular_file, write_text

MAX_CLASSES = 1_000_000
NO_CLASS = -1  # label of the frames of an utterance without alignment
UNALIGNED = "it has no alignment"  # start of the reason for which an utterance without alignment is dropped
NUM_NAMED = 3  # utterances that an error names
SUBSETS = ("train", "valid", "test")

Bools = npt.NDArray[np.bool_]
Float32s = npt.NDArray[np.float32]
Int32s = npt.NDArray[np.int32]

csv.field_size_limit(2**31 - 1)  # Python's own limit is shorter than some transcripts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Utterance:
    """One utterance from a data source.

    Attributes:
        name: name of the utterance.
        features: (frames, dim).
        labels: (frames,); None for a test utterance without alignment.
        text: transcript, if known.
        silence: (frames,) whether a frame is silence, which the feature transform ignores; None for no silence.
        speaker: its speaker; the utterance's own name if that is not known.
    """

    name: str
    features: Float32s
    labels: Int32s | None
    text: str = ""
    silence: Bools | None = None
    speaker: str = ""


@dataclass(frozen=True)
class WordModel:
    """A word as a left-to-right chain of classes, with the log-probabilities of staying in and of leaving each."""

    word: str
    classes: tuple[int, ...]
    log_stay: tuple[float, ...]
    log_leave: tuple[float, ...]


@dataclass(frozen=True)
class CorpusInfo:
    """Contents of ``corpus.json``.

    Attributes:
        dim: feature dimension.
        class_counts: number of frames of each class in the training subset; its length is the number of classes.
        num_utterances, num_frames: numbers for each subset.
        sha256: hash of each subset's arrays, by which a run detects that its data has changed.
        dropped: names of the dropped utterances, with the reasons.
        words: word models, for corpora of isolated words; empty otherwise.
        const_dim: number of trailing dimensions that are constant over many frames (i-vectors).
        transition_model: the transition model if classes are Kaldi's pdf-ids, in the form of
            `ngsgd.kaldi.transition.transitions_to_text`; None otherwise.
        phones: phone names, silence first, if the classes are the states of phones, ordered by phone and with equally
            many states for each; transcripts then consist of these names. Empty otherwise.
    """

    dim: int
    class_counts: list[int]
    num_utterances: dict[str, int]
    num_frames: dict[str, int]
    sha256: dict[str, str]
    dropped: dict[str, str]
    words: list[WordModel]
    const_dim: int = 0
    transition_model: str | None = None
    phones: tuple[str, ...] = ()


class _NpyWriter:
    """Writes an .npy file piece by piece; numpy pads the header so that the first dimension can be updated in place."""

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
    """Result of `write_subset`: numbers of utterances and frames, and a hash of the arrays."""

    utterances: int
    frames: int
    sha256: str


def write_subset(directory: Path, subset: str, utterances: Iterable[Utterance], dim: int) -> SubsetSummary:
    """Writes one subset as a stream, so that memory use does not depend on its size.

    Raises:
        OSError: a file cannot be written; none of the files is left then.
    """
    hash_ = hashlib.sha256()
    with contextlib.ExitStack() as stack:
        features_path, labels_path, silence_path, table_path = (
            stack.enter_context(atomic_write(p)) for p in _paths(directory, subset)
        )
        features = _NpyWriter(stack.enter_context(open(features_path, "wb")), (dim,), np.float32, hash_)
        labels = _NpyWriter(stack.enter_context(open(labels_path, "wb")), (), np.int32, hash_)
        silence = _NpyWriter(stack.enter_context(open(silence_path, "wb")), (), np.bool_, hash_)
        table = stack.enter_context(open(table_path, "w", encoding="utf-8", newline=""))
        rows = csv.writer(table, delimiter="\t", lineterminator="\n")
        rows.writerow(("utterance", "frames", "speaker", "text"))
        count = 0
        for utterance in utterances:
            frames = len(utterance.features)
            features.append(utterance.features)
            labels.append(np.full(frames, NO_CLASS) if utterance.labels is None else utterance.labels)
            silence.append(np.zeros(frames) if utterance.silence is None else utterance.silence)
            rows.writerow((utterance.name, frames, utterance.speaker or utterance.name, utterance.text))
            count += 1
        for array in (features, labels, silence):
            array.finish()
    return SubsetSummary(count, labels.length, hash_.hexdigest())


SUBSET_FILES = ("features.npy", "labels.npy", "silence.npy", "utterances.tsv")


def _paths(directory: Path, subset: str) -> list[Path]:
    return [directory / f"{subset}.{file}" for file in SUBSET_FILES]


class UtteranceFilter:
    """Drops invalid utterances before they enter a corpus, and fails if they are too many.

    Args:
        dim: feature dimension.
        num_classes: labels must be from 0 to num_classes - 1.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        self.dim, self.num_classes = dim, num_classes
        self.dropped: dict[str, str] = {}
        self.class_counts = np.zeros(num_classes, np.int64)

    def drop(self, name: str, reason: str) -> None:
        """Records a dropped utterance and logs a warning."""
        name = name.encode("utf-8", "backslashreplace").decode("utf-8")
        reason = " ".join(reason.split())[:500]
        log.warning("utterance %s dropped: %s", name, reason)
        self.dropped[name] = reason

    def accept(self, utterances: Iterable[Utterance], *, count_classes: bool = False) -> Iterator[Utterance]:
        """Yields the valid utterances, drops the others and, if asked, counts the frames of each class."""
        for utterance in utterances:
            if reason := self._fault(utterance):
                self.drop(utterance.name, reason)
                continue
            if count_classes and utterance.labels is not None:
                self.class_counts += np.bincount(utterance.labels, minlength=self.num_classes)
            yield utterance

    def _fault(self, utterance: Utterance) -> str | None:
        features, labels = utterance.features, utterance.labels
        try:
            for text in (utterance.name, utterance.speaker, utterance.text):
                text.encode("utf-8")
        except UnicodeEncodeError:
            return "its name, speaker or transcript has a lone surrogate, which is no character"
        if features.ndim != 2 or features.shape[1] != self.dim:
            return f"features of shape {features.shape}, expected (frames, {self.dim})"
        if len(features) == 0:
            return "no frames"
        if not np.isfinite(features).all():
            return "features are not finite"
        if labels is None:
            return None
        if labels.shape != (len(features),):
            return f"{len(features)} frames of features, {labels.size} labels"
        outside = (labels < 0) | (labels >= self.num_classes)
        if outside.any():
            return f"label {labels[outside][0]} is outside 0 - {self.num_classes - 1}; was it made with other classes?"
        return None

    def check(self, num_kept: int, max_bad_share: float, max_unaligned_share: float) -> None:
        """Checks that few enough utterances were dropped.

        Args:
            num_kept: number of the other utterances.
            max_bad_share: largest share of unusable utterances.
            max_unaligned_share: largest share of utterances without alignment.

        Raises:
            DataError: there are no utterances, or too many were dropped.
        """
        num_utterances = num_kept + len(self.dropped)
        if num_utterances == 0:
            raise DataError("the corpus is empty")
        unaligned = [name for name, reason in self.dropped.items() if reason.startswith(UNALIGNED)]
        bad = [f"{name}: {reason}" for name, reason in self.dropped.items() if not reason.startswith(UNALIGNED)]
        for names, kind, setting, limit in (
            (bad, "are bad", "max_bad_utterance_share", max_bad_share),
            (unaligned, "have no alignment", "max_unaligned_utterance_share", max_unaligned_share),
        ):
            if len(names) > limit * num_utterances:
                raise DataError(
                    f"{len(names)} of {num_utterances} utterances {kind}, more than {setting} = {limit:g}; "
                    f"{_first(names)}"
                )
            if names:
                log.warning("%d of %d utterances %s; %s", len(names), num_utterances, kind, _first(names))


def _first(names: Sequence[str]) -> str:
    return f"the first {'is' if len(names) == 1 else 'are'} {'; '.join(names[:NUM_NAMED])}"


def write_info(directory: Path, info: CorpusInfo) -> None:
    """Writes ``corpus.json``; call it last, since its presence marks the corpus as complete.

    Raises:
        OSError: the file cannot be written.
    """
    write_text(directory / "corpus.json", json.dumps(asdict(info), indent=1) + "\n")


def read_info(directory: str | os.PathLike[str]) -> CorpusInfo:
    """Reads ``corpus.json`` of a prepared corpus.

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
    """Returns the index of the first utterance of a split (from 0) and that after its last."""
    return num_utterances * split // num_splits, num_utterances * (split + 1) // num_splits


class Subset:
    """The utterances of one subset of a prepared corpus, memory-mapped.

    Attributes:
        features: (frames, dim) float32, all utterances concatenated.
        labels: (frames,) int32.
        silence: (frames,) bool.
        names, speakers, texts: name, speaker and transcript of each utterance.
        starts: (utterances + 1,) index of the first frame of each utterance, then the total number of frames.

    Raises:
        DataError: a file is missing, truncated or inconsistent with the others.
    """

    def __init__(self, directory: str | os.PathLike[str], subset: str) -> None:
        features_path, labels_path, silence_path, table_path = _paths(Path(directory), subset)
        self.features: Float32s = map_array(features_path)
        self.labels: Int32s = map_array(labels_path)
        self.silence: Bools = map_array(silence_path)
        try:
            with open(table_path, encoding="utf-8", newline="") as f:
                rows = list(csv.DictReader(f, delimiter="\t"))
            self.names = [row["utterance"] for row in rows]
            self.speakers = [row["speaker"] for row in rows]
            self.texts = [row["text"] for row in rows]
            frames = np.array([int(row["frames"]) for row in rows], np.int64)
        except (OSError, KeyError, ValueError, TypeError) as e:
            raise DataError(f"{table_path}: not a table of utterances ({e})") from None
        self.starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(frames)))
        types = [array.dtype for array in (self.features, self.labels, self.silence)]
        if self.features.ndim != 2 or types != [np.dtype("<f4"), np.dtype("<i4"), np.dtype("?")]:
            raise DataError(f"{features_path}: not the features of a prepared corpus; delete the folder and run again")
        if not len(self.features) == len(self.labels) == len(self.silence) == self.starts[-1]:
            raise DataError(
                f"{table_path} lists {self.starts[-1]} frames, {features_path.name} has {len(self.features)}, "
                f"{labels_path.name} has {len(self.labels)}, {silence_path.name} has {len(self.silence)}; delete the "
                "folder and run again"
            )

    def __len__(self) -> int:
        return len(self.names)

    def utterance(self, i: int) -> tuple[Float32s, Int32s]:
        """Returns the features and labels of utterance i, as views of the memory-mapped files."""
        rows = slice(self.starts[i], self.starts[i + 1])
        return self.features[rows], self.labels[rows]

    def silence_of(self, i: int) -> Bools:
        """Returns which frames of utterance i are silence, as a view of the memory-mapped file."""
        return self.silence[self.starts[i] : self.starts[i + 1]]


def map_array(path: Path) -> npt.NDArray[Any]:
    """Opens an .npy file as a read-only, memory-mapped array.

    Raises:
        DataError: the file is missing, truncated or not an array.
    """
    try:
        require_regular_file(path)
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: no such file" if isinstance(e, FileNotFoundError) else f"{path}: {e}") from None
    damaged = f"{path}: truncated, or not an .npy array; delete it and run again"
    try:
        # An empty array cannot be memory-mapped.
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
