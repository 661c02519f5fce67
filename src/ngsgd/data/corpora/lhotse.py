"""``corpus: lhotse``: reads cuts with features or audio, and with labels or a phone alignment.

A manifest can name commands, URLs and pickles, which Lhotse would run or load. Each line is therefore checked before it
reaches Lhotse, and only audio and arrays in files are accepted.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ngsgd.data.corpora import CorpusSettings, ExtractorSettings, FileSettings, register_corpus
from ngsgd.data.corpus import MAX_CLASSES, Float32s, Int32s, Utterance, WordModel, map_array, split_bounds
from ngsgd.data.extractor import Extractor, floats, one_line
from ngsgd.data.holdout import hold_out, include_copies
from ngsgd.declare import setting
from ngsgd.errors import ConfigError, DataError, UtteranceError
from ngsgd.files import require_regular_file, resolve_path
from ngsgd.kaldi.tables import read_lines

MAX_LINE = 2**23  # bytes of one item
MAX_EXPANSION = 100  # largest uncompressed size of a gzipped manifest, relative to its size
RATES = (1000, 200_000)  # Hz
PROBED = 20  # cuts read to find the feature dimension
AUDIO = (".wav", ".flac", ".ogg", ".mp3")
PERTURBED = re.compile(r"_(sp|tp|vp)[\d.]+(?=_|-|$)")  # suffix that Lhotse gives to perturbed copies


@dataclass(frozen=True)
class Manifests:
    """Manifests of the training or test data: cuts, or recordings and supervisions, from which cuts are made."""

    cuts: Path | None
    recordings: Path | None
    supervisions: Path | None

    def read(self, root: Path, *, allow_pipes: bool) -> Iterator[Any]:
        """Yields the cuts.

        Raises:
            DataError: a manifest is damaged, or names something that would be run or fetched.
        """
        if self.cuts:
            return read_manifest(self.cuts, root, allow_pipes=allow_pipes)
        from lhotse import CutSet, RecordingSet, SupervisionSet

        assert self.recordings is not None
        assert self.supervisions is not None
        recordings = list(read_manifest(self.recordings, root, allow_pipes=allow_pipes, kind="recording"))
        supervisions = list(read_manifest(self.supervisions, root, allow_pipes=allow_pipes, kind="supervision"))
        try:
            cuts = CutSet.from_manifests(
                recordings=RecordingSet.from_recordings(recordings),
                supervisions=SupervisionSet.from_segments(supervisions),
            )
            return iter(list(cuts.trim_to_supervisions(keep_overlapping=False)))
        except Exception as e:  # Lhotse raises various types for manifests that do not match
            raise DataError(
                f"{self.supervisions}: no cuts can be made from it and {self.recordings} ({one_line(e)})"
            ) from None


@dataclass(frozen=True)
class LabelOptions:
    """Source of the labels of a cut.

    Attributes:
        array: name of an array attached to the cut, with the class of each frame; None to use an alignment.
        alignment: name of the alignment in the supervisions, such as ``phone``.
        symbols: file with a line ``symbol number`` for each symbol of the alignment; frames that no symbol covers get
            the first one.
        states_per_symbol: number of classes of each symbol; its frames are divided equally between them.
    """

    array: str | None
    alignment: str
    symbols: Path | None
    states_per_symbol: int


@dataclass(frozen=True, kw_only=True)
class LhotseSettings(ExtractorSettings, FileSettings):
    """`corpus: lhotse`

    `lhotse.yaml` in this folder is an example. The data is given as cuts, or as recordings and supervisions, each of
    which becomes a cut. Labels come from an array attached to the cuts, or from an alignment of the supervisions.
    """

    train_cuts: str | None = setting(
        None, "Manifest of the training cuts, `.jsonl` or `.jsonl.gz`.", stage="corpus", is_source=True
    )
    test_cuts: str | None = setting(None, "Manifest of the test cuts.", stage="corpus", is_source=True)
    train_recordings: str | None = setting(
        None, "Manifest of the training recordings, instead of cuts.", stage="corpus", is_source=True
    )
    test_recordings: str | None = setting(
        None, "Manifest of the test recordings, instead of cuts.", stage="corpus", is_source=True
    )
    train_supervisions: str | None = setting(
        None, "Manifest of the training supervisions, instead of cuts.", stage="corpus", is_source=True
    )
    test_supervisions: str | None = setting(
        None, "Manifest of the test supervisions, instead of cuts.", stage="corpus", is_source=True
    )
    label_array: str | None = setting(
        None, "Name of the array attached to the cuts that has one class for each frame.", stage="corpus"
    )
    alignment_type: str = setting(
        "phone",
        "Alignment of the supervisions that labels are taken from if there is no `label_array`.",
        stage="corpus", not_empty=True,
    )  # fmt: skip
    alignment_symbols: str | None = setting(
        None,
        "File with a line `symbol number` for each symbol of that alignment. Frames without a symbol get the first "
        "one.",
        stage="corpus", is_source=True,
    )  # fmt: skip

    def check(self) -> None:
        for side in ("train", "test"):
            cuts, *rest = (getattr(self, f"{side}_{kind}") for kind in ("cuts", "recordings", "supervisions"))
            if (cuts is None) == (None in rest) or (cuts is not None and rest != [None, None]):
                raise ConfigError(f"corpus: lhotse needs {side}_cuts, or {side}_recordings and {side}_supervisions")
        if (self.label_array is None) == (self.alignment_symbols is None):
            raise ConfigError("corpus: lhotse needs label_array or alignment_symbols, and not both")


@register_corpus("lhotse")
class LhotseCorpus:
    """A corpus of Lhotse manifests; see `Corpus`.

    Args:
        train, test: the manifests.
        root: folder for relative paths that do not exist in the working directory.
        extractor: ``kaldi-fbank``, ``kaldi-mfcc``, or a YAML file of extractor settings written by Lhotse; used for
            cuts without features.
        labels: source of the labels.
        valid_utterances: file with one validation cut per line; None to hold out training cuts.
        num_valid_utterances: how many to hold out then; perturbed copies of one recording stay together.
        allow_pipes: whether to open everything that a manifest names, including commands and URLs.

    Raises:
        DataError: a manifest or the table of symbols is missing or malformed.
        ConfigError: a setting does not match the data.
    """

    settings_type: ClassVar[type[CorpusSettings]] = LhotseSettings
    const_dim = 0
    transition_model: str | None = None
    phones: tuple[str, ...] = ()

    @classmethod
    def from_settings(cls, settings: LhotseSettings) -> LhotseCorpus:
        train, test = (
            Manifests(*(settings.path(f"{side}_{kind}") for kind in ("cuts", "recordings", "supervisions")))
            for side in ("train", "test")
        )
        labels = LabelOptions(
            settings.label_array,
            settings.alignment_type,
            settings.path("alignment_symbols"),
            settings.states_per_symbol,
        )
        return cls(
            train,
            test,
            settings.root,
            settings.feature_extractor,
            labels,
            settings.path("valid_utterances"),
            settings.num_valid_utterances,
            allow_pipes=settings.allow_pipes,
        )

    def __init__(
        self,
        train: Manifests,
        test: Manifests,
        root: Path,
        extractor: str,
        labels: LabelOptions,
        valid_utterances: Path | None,
        num_valid_utterances: int,
        *,
        allow_pipes: bool,
    ) -> None:
        self._sides = {"train": train, "test": test}
        self._root, self._allow_pipes = root, allow_pipes
        self._extractor = Extractor(extractor, root)
        self._options = labels
        self._symbols = _read_symbols(labels.symbols) if labels.symbols else {}
        self.words: list[WordModel] = []
        self._names: dict[str, list[str]] = {"train": [], "test": []}
        originals: dict[str, str] = {}
        self.num_classes = (max(self._symbols.values(), default=0) + 1) * labels.states_per_symbol
        if labels.array is not None:
            self.num_classes = 1
        for side, names in self._names.items():
            for cut in self._cuts(side):
                names.append(cut.id)
                originals[cut.id] = PERTURBED.sub("", cut.id)
                if labels.array is not None:
                    self.num_classes = max(self.num_classes, self._largest_label(cut) + 1)
        if self.num_classes > MAX_CLASSES:
            raise DataError(f"labels up to {self.num_classes - 1}, but at most {MAX_CLASSES} classes are supported")
        for side, names in self._names.items():
            if len(set(names)) != len(names):
                raise DataError(f"{side} manifest: two cuts of the same name; make the names unique")
            if not names:
                raise DataError(f"{side} manifest: it is empty")
        if valid_utterances:
            listed = {name for name, _ in read_lines(valid_utterances)}
            self._valid = include_copies(listed, self._names["train"], originals)
            if not self._valid:
                raise DataError(f"{valid_utterances}: none of its cuts is in the training manifest")
        else:
            self._valid = hold_out(self._names["train"], num_valid_utterances, originals)
        self.dim = self._probe()

    def read(self, subset: str, part: int, num_parts: int, drop: Callable[[str, str], None]) -> Iterator[Utterance]:
        """Reads the utterances of one part of a subset; see `Corpus`."""
        side = "test" if subset == "test" else "train"
        first, last = split_bounds(len(self._names[side]), part, num_parts)
        for index, cut in enumerate(self._cuts(side)):
            if not first <= index < last or (side == "train" and (cut.id in self._valid) != (subset == "valid")):
                continue
            try:
                features = self._features(cut)
                labels = self._labels(cut, len(features))
            except UtteranceError as e:
                drop(cut.id, str(e))
                continue
            text = " ".join(str(s.text) for s in cut.supervisions if s.text)
            yield Utterance(cut.id, features, labels, " ".join(text.split()))

    def _cuts(self, side: str) -> Iterator[Any]:
        return self._sides[side].read(self._root, allow_pipes=self._allow_pipes)

    def _probe(self) -> int:
        reason, found = "it is empty", Counter[int]()
        for _, cut in zip(range(PROBED), self._cuts("train"), strict=False):
            try:
                features = self._features(cut)
                if features.ndim == 2:
                    found[int(features.shape[1])] += 1
                reason = f"{cut.id}: features of shape {features.shape}"
            except UtteranceError as e:
                reason = f"{cut.id}: {e}"
        if not found:
            raise DataError(f"training manifest: none of its first cuts can be read; the last error: {reason}")
        return found.most_common(1)[0][0]

    def _features(self, cut: Any) -> Float32s:
        """Returns the stored features (T, dim) of a cut, or computes them from its audio."""
        if type(cut).__name__ != "MonoCut":
            raise UtteranceError(f"it is a {type(cut).__name__}; only a MonoCut can be read")
        if cut.has_features:
            return floats(_load_stored(cut.features, cut.load_features))
        if not cut.has_recording:
            raise UtteranceError("it has neither features nor audio")
        import lhotse

        # Other backends start programs, which may open more than this file.
        lhotse.audio.set_current_audio_backend(lhotse.audio.backend.LibsndfileBackend())
        return self._extractor(_load_checked(cut.load_audio), int(cut.sampling_rate))

    def _labels(self, cut: Any, num_frames: int) -> Int32s:
        if self._options.array is not None:
            return self._attached_labels(cut).astype(np.int32)
        labels: Int32s = _load_checked(lambda: self._alignment_labels(cut, num_frames))
        return labels

    def _alignment_labels(self, cut: Any, num_frames: int) -> Int32s:
        """Returns the classes of a cut's frames, from the alignment of its supervisions."""
        if not num_frames:
            raise UtteranceError("no frames")
        labels = np.full(num_frames, next(iter(self._symbols.values())) * self._options.states_per_symbol, np.int32)
        items = [i for s in cut.supervisions for i in (s.alignment or {}).get(self._options.alignment, ())]
        if not items:
            raise UtteranceError(f"no alignment of type {self._options.alignment}")
        shift = cut.duration / num_frames
        for item in items:
            if item.symbol not in self._symbols:
                raise UtteranceError(f"symbol {item.symbol!r:.60} is not in the table of alignment_symbols")
            # An item's start is relative to the start of the recording, not of the cut.
            first, last = (round((t - cut.start) / shift) for t in (item.start, item.start + item.duration))
            # If an item extends beyond the cut, only the states within the cut are used.
            frames = np.arange(max(first, 0), min(last, num_frames))
            n = self._options.states_per_symbol
            labels[frames] = self._symbols[item.symbol] * n + (frames - first) * n // max(1, last - first)
        return labels

    def _attached_labels(self, cut: Any) -> Int32s:
        name = self._options.array
        manifest = (cut.custom or {}).get(name)
        if not hasattr(manifest, "storage_type") and not hasattr(manifest, "array"):
            raise UtteranceError(f"no array {name!r} is attached to it")
        labels = np.asarray(_load_stored(getattr(manifest, "array", manifest), lambda: getattr(cut, f"load_{name}")()))
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise UtteranceError(f"array {name!r} is {labels.dtype}{labels.shape}, expected one integer per frame")
        if labels.size and not 0 <= labels.min() <= labels.max() < MAX_CLASSES:
            raise UtteranceError(
                f"array {name!r} has labels from {labels.min()} to {labels.max()}, allowed are 0 - {MAX_CLASSES - 1}"
            )
        return labels

    def _largest_label(self, cut: Any) -> int:
        try:
            return int(self._attached_labels(cut).max(initial=0))
        except UtteranceError:  # `read` reports it
            return 0


def read_manifest(path: Path, root: Path, *, allow_pipes: bool, kind: str = "cut") -> Iterator[Any]:
    """Yields the items of a manifest, ``.jsonl`` or ``.jsonl.gz``: cuts, recordings or supervisions.

    Raises:
        DataError: the file is damaged, or names something that would be run or fetched.
    """
    import lhotse
    from lhotse.serialization import deserialize_item

    known = {
        "cut": lhotse.cut.Cut, "recording": lhotse.Recording, "supervision": lhotse.SupervisionSegment,
    }  # fmt: skip
    for number, raw in enumerate(_lines(path), start=1):
        where = f"{path}: line {number}"
        try:
            fields = json.loads(raw)
        except (ValueError, RecursionError) as e:
            raise DataError(f"{where}: not JSON ({e})") from None
        try:
            if not allow_pipes:
                _check_fields(fields, where, root)
            item = deserialize_item(fields)
        except DataError:
            raise
        except Exception as e:  # Lhotse raises various types for a malformed line
            raise DataError(f"{where}: not an item of a Lhotse manifest ({one_line(e)})") from None
        if not isinstance(item, known[kind]) or not isinstance(item.id, str):
            raise DataError(f"{where}: a {type(item).__name__}, expected a {known[kind].__name__} with a name")
        yield item


def _lines(path: Path) -> Iterator[bytes]:
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise DataError(f"{path}: not a .jsonl or .jsonl.gz manifest; convert it with lhotse copy")
    try:
        require_regular_file(path)
        left = max(2**24, MAX_EXPANSION * path.stat().st_size)
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as f:
            while line := f.readline(MAX_LINE):
                left -= len(line)
                if left < 0:
                    raise DataError(f"{path}: it expands more than {MAX_EXPANSION}-fold; unpack it first")
                if len(line) == MAX_LINE:
                    raise DataError(f"{path}: a line of more than {MAX_LINE} bytes")
                if line.strip():
                    yield line
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"{path}: cannot be read: {e}") from None


def _check_fields(fields: Any, where: str, root: Path) -> None:
    """Checks that only arrays and audio in files are named, and resolves their paths in place."""
    if isinstance(fields, list):
        for value in fields:
            _check_fields(value, where, root)
    if not isinstance(fields, dict):
        return
    if "storage_type" in fields:
        if fields["storage_type"] != "numpy_files":
            raise DataError(
                f"{where}: storage of type {fields['storage_type']!r:.60}; only numpy_files is supported, convert it "
                "with CutSet.copy_feats"
            )
        fields["storage_path"] = _checked_path(fields.get("storage_path"), where, root)
        _checked_path(fields.get("storage_key"), where, root)
    sources = fields.get("sources", [])
    for source in sources if isinstance(sources, list) else [sources]:
        if not isinstance(source, dict) or source.get("type") != "file":
            raise DataError(f"{where}: an audio source that is not a file; it is only opened with allow_pipes: true")
        source["source"] = _checked_path(source.get("source"), where, root)
        if not source["source"].lower().endswith(AUDIO):
            raise DataError(f"{where}: {source['source']!r:.60}: audio must be one of {', '.join(AUDIO)}")
    rate = fields.get("sampling_rate", RATES[0])
    if not isinstance(rate, int) or not RATES[0] <= rate <= RATES[1]:
        raise DataError(f"{where}: sampling rate {rate!r:.60}, expected {RATES[0]} - {RATES[1]} Hz")
    for transform in fields.get("transforms") or []:
        factor = transform["kwargs"].get("factor", 1.0) if transform["name"] in ("Speed", "Tempo", "Volume") else None
        if not isinstance(factor, int | float) or not 0.1 <= factor <= 10.0:
            raise DataError(f"{where}: an audio transform other than Speed, Tempo or Volume with a factor of 0.1 to 10")
    for value in fields.values():
        _check_fields(value, where, root)


def _checked_path(path: Any, where: str, root: Path) -> str:
    if not isinstance(path, str) or "://" in path or path.startswith(("pipe:", "-")) or "|" in path or "\0" in path:
        raise DataError(f"{where}: {path!r:.60} is not the path of a file; it is only opened with allow_pipes: true")
    return os.fspath(resolve_path(path, root))


def _load_stored(manifest: Any, load: Callable[[], Any]) -> Any:
    """Loads a stored array, after a check that its file is as long as its header says."""
    if manifest.storage_type == "numpy_files":
        try:
            map_array(Path(manifest.storage_path) / manifest.storage_key)
        except DataError as e:
            raise UtteranceError(str(e)) from None
    return _load_checked(load)


def _load_checked(load: Callable[[], Any]) -> Any:
    """Calls ``load`` and converts its exceptions to UtteranceError."""
    try:
        return load()
    except UtteranceError:
        raise
    except Exception as e:  # Lhotse and its libraries raise various types for a damaged file
        raise UtteranceError(f"cannot be read ({one_line(e)})") from None


def _read_symbols(path: Path) -> dict[str, int]:
    try:
        symbols = {symbol: int(number) for symbol, number in read_lines(path)}
    except ValueError:
        raise DataError(f"{path}: expected lines of a symbol and its number") from None
    numbers = set(symbols.values())
    if not symbols or min(numbers) != 0 or max(numbers) != len(numbers) - 1:
        raise DataError(f"{path}: the symbol numbers must be 0, 1, 2, ... without gaps")
    return symbols
