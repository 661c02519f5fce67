"""``corpus: lhotse``: reads cuts with features or audio, and with labels or a phone alignment."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ngsgd.data.alignment_files import Segment, open_alignments
from ngsgd.data.corpora import CorpusSettings, ExtractorSettings, FileSettings, register_corpus
from ngsgd.data.corpus import MAX_CLASSES, UNALIGNED, Float32s, Int32s, Utterance, WordModel, split_bounds
from ngsgd.data.extractor import Extractor, floats, one_line
from ngsgd.data.holdout import hold_out, include_copies
from ngsgd.data.lhotse_items import Items
from ngsgd.data.lhotse_manifests import Manifests
from ngsgd.data.phones import collapse
from ngsgd.declare import setting
from ngsgd.errors import ConfigError, DataError, UtteranceError
from ngsgd.files import require_regular_file
from ngsgd.kaldi.tables import Locations, read_lines, split_words

PROBED = 20  # cuts read to find the feature dimension
PERTURBED = re.compile(r"_(sp|tp|vp)[\d.]+(?=_|-|$)")  # suffix that Lhotse gives to perturbed copies
EMPTY = "<eps>"  # symbol in the table for items of an alignment that have none
MAX_PHONE_CLASSES = 1000  # the time that a phone loop takes is quadratic in the number of classes
MAX_MIX = 3600.0  # seconds of a mix, all of which is in memory
MIXABLE = ("kaldi-fbank",)  # types of stored features that Lhotse can mix without other packages


@dataclass(frozen=True)
class LabelOptions:
    """Source of the labels of a cut.

    Attributes:
        array: name of an array attached to the cut, with the class of each frame; None to use an alignment.
        alignment: name of the alignment in the supervisions, such as ``phone``.
        symbols: file with a line ``symbol number`` for each symbol of the alignment; frames that no symbol covers get
            the first one.
        states_per_symbol: number of classes of each symbol; its frames are divided equally between them.
        files: alignments of cuts whose supervisions have none; see `open_alignments`.
        num_classes: number of classes of the array; None to find it by reading all arrays.
        transcripts: ``phones`` of the alignment or ``words`` of the supervisions.
    """

    array: str | None
    alignment: str
    symbols: Path | None
    states_per_symbol: int
    files: Path | None = None
    num_classes: int | None = None
    transcripts: str = "phones"


@dataclass(frozen=True, kw_only=True)
class LhotseSettings(ExtractorSettings, FileSettings):
    """`corpus: lhotse`

    `lhotse.yaml` in this folder is an example. The data is given as cuts, or as recordings and supervisions, each of
    which becomes a cut. Labels come from an array attached to the cuts, or from an alignment of the supervisions.
    """

    train_cuts: str | None = setting(
        None,
        "Manifest of the training cuts, `.jsonl` or `.jsonl.gz`, or a folder in Lhotse's Shar format.",
        stage="corpus", is_source=True,
    )  # fmt: skip
    test_cuts: str | None = setting(None, "Manifest of the test cuts, likewise.", stage="corpus", is_source=True)
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
        "one, and so do items with an empty symbol, unless the table has `<eps>` for these. If the first one has "
        "number 0, the others are the phones whose error rate is measured.",
        stage="corpus", is_source=True,
    )  # fmt: skip
    alignment_files: str | None = setting(
        None,
        "Alignments for cuts whose supervisions have none: a folder with `<name>.TextGrid` for each supervision (times "
        "from its start) or recording, or a `.ctm` file with these names.",
        stage="corpus", is_source=True,
    )  # fmt: skip
    transcripts: Literal["phones", "words"] = setting(
        "phones",
        "`phones`: with `alignment_symbols` the error rate of phones is measured; `words`: that of the supervisions' "
        "words, decoded with a `graph`.",
        stage="corpus",
    )
    num_classes: int | None = setting(
        None,
        "Number of classes of `label_array`. Without it, each job that prepares data reads all labels to find it.",
        stage="corpus", minimum=1, maximum=MAX_CLASSES,
    )  # fmt: skip

    def check(self) -> None:
        for side in ("train", "test"):
            cuts, *rest = (getattr(self, f"{side}_{kind}") for kind in ("cuts", "recordings", "supervisions"))
            if (cuts is None) == (None in rest) or (cuts is not None and rest != [None, None]):
                raise ConfigError(f"corpus: lhotse needs {side}_cuts, or {side}_recordings and {side}_supervisions")
        if (self.label_array is None) == (self.alignment_symbols is None):
            raise ConfigError("corpus: lhotse needs label_array or alignment_symbols, and not both")
        for name, other in (("alignment_files", "alignment_symbols"), ("num_classes", "label_array")):
            if getattr(self, name) is not None and getattr(self, other) is None:
                raise ConfigError(f"{name} is only used with {other}")


@register_corpus("lhotse")
class LhotseCorpus:
    """A corpus of Lhotse manifests; see `Corpus`.

    Args:
        train, test: the manifests.
        locations: how paths in the manifests are looked up; with ``allow_pipes`` everything that a manifest names is
            opened, including commands and URLs.
        extractor: ``kaldi-fbank``, ``kaldi-mfcc``, or a YAML file of extractor settings written by Lhotse; used for
            cuts without features.
        labels: source of the labels.
        valid_utterances: file with one validation cut per line; None to hold out training cuts.
        num_valid_utterances: how many to hold out then; perturbed copies of one recording stay together.

    Raises:
        DataError: a manifest or the table of symbols is missing or malformed.
        ConfigError: a setting does not match the data.
    """

    settings_type: ClassVar[type[CorpusSettings]] = LhotseSettings
    const_dim = 0
    transition_model: str | None = None

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
            settings.path("alignment_files"),
            settings.num_classes,
            settings.transcripts,
        )
        return cls(
            train,
            test,
            settings.locations(),
            str(settings.path("feature_extractor") or settings.feature_extractor),
            labels,
            settings.path("valid_utterances"),
            settings.num_valid_utterances,
        )

    def __init__(
        self,
        train: Manifests,
        test: Manifests,
        locations: Locations,
        extractor: str,
        labels: LabelOptions,
        valid_utterances: Path | None,
        num_valid_utterances: int,
    ) -> None:
        self._sides = {"train": train, "test": test}
        self._items = Items(locations)
        self._extractor = Extractor(extractor, locations.root)
        self._options = labels
        self._symbols = _read_symbols(labels.symbols) if labels.symbols else {}
        self._files = open_alignments(labels.files, labels.alignment) if labels.files else None
        self.words: list[WordModel] = []
        self._names = {side: manifests.names() for side, manifests in self._sides.items()}
        for side, names in self._names.items():
            if len(set(names)) != len(names):
                raise DataError(f"{side} manifest: two cuts of the same name; make the names unique")
            if not names:
                raise DataError(f"{side} manifest: it is empty")
        self.num_classes = self._count_classes()
        self.phones = self._find_phones()
        originals = {name: PERTURBED.sub("", name) for name in self._names["train"]}
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
        for cut in self._cuts(
            side, first, last, drop, lambda name: side == "test" or (name in self._valid) == (subset == "valid")
        ):
            try:
                utterance: Utterance = _call_checked(self._utterance, cut)
            except UtteranceError as e:
                drop(cut.id, str(e))
                continue
            yield utterance

    def _cuts(
        self,
        side: str,
        first: int,
        last: int,
        drop: Callable[[str, str], None],
        wanted: Callable[[str], bool] = lambda name: True,
    ) -> Iterator[Any]:
        return self._sides[side].read(first, last, wanted, self._items, drop)

    def _count_classes(self) -> int:
        if self._options.array is None:
            number = (max(self._symbols.values()) + 1) * self._options.states_per_symbol
        elif self._options.num_classes is not None:
            number = self._options.num_classes
        else:
            number = 1
            for side, names in self._names.items():
                for cut in self._cuts(side, 0, len(names), lambda name, reason: None):
                    number = max(number, self._largest_label(cut) + 1)
        if number > MAX_CLASSES:
            raise DataError(f"labels up to {number - 1}, but at most {MAX_CLASSES} classes are supported")
        return number

    def _find_phones(self) -> tuple[str, ...]:
        """Returns the phones of the table in the order of their numbers, if the first line is number 0."""
        if self._options.transcripts == "words" or not self._symbols:
            return ()
        if next(iter(self._symbols.values())) or self.num_classes > MAX_PHONE_CLASSES:
            return ()
        phones: dict[int, str] = {}
        for symbol, number in self._symbols.items():
            phones.setdefault(number, symbol)
        return tuple(phones[number] for number in range(len(phones)))

    def _probe(self) -> int:
        found = Counter[int]()
        reasons: list[str] = []
        for cut in self._cuts("train", 0, PROBED, lambda name, reason: reasons.append(f"{name}: {reason}")):
            try:
                features = _call_checked(lambda cut: self._features(_speech(cut, self._options.array)[1]), cut)
                if features.ndim == 2:
                    found[int(features.shape[1])] += 1
                reasons.append(f"{cut.id}: features of shape {features.shape}")
            except UtteranceError as e:
                reasons.append(f"{cut.id}: {e}")
        if not found:
            last = " ".join(reasons[-1].split())
            raise DataError(f"training manifest: none of its first cuts can be read; the last error: {last}")
        return found.most_common(1)[0][0]

    def _utterance(self, cut: Any) -> Utterance:
        speech, whole = _speech(cut, self._options.array)
        features = self._features(whole)
        text = " ".join(str(s.text) for s in speech.supervisions if s.text)
        if self._options.array is not None:
            labels = self._attached_labels(speech)
        else:
            labels = self._alignment_labels(speech, len(features))
            if self.phones:
                text = " ".join(collapse(labels.tolist(), self.phones, self._options.states_per_symbol))
        return Utterance(cut.id, features, labels.astype(np.int32), " ".join(split_words(text)))

    def _features(self, cut: Any) -> Float32s:
        """Returns the stored features (T, dim) of a cut, or computes them from its audio."""
        cuts = [track.cut for track in cut.tracks] if hasattr(cut, "tracks") else [cut]
        if all(c.has_features for c in cuts):
            if len(cuts) > 1 and not all(c.features.type in MIXABLE for c in cuts):
                raise UtteranceError(f"a mix of stored features other than {', '.join(MIXABLE)}; remove the features")
            return floats(cut.load_features())
        if not all(c.has_recording for c in cuts):
            raise UtteranceError("it has neither features nor audio")
        for source in (source for c in cuts for source in c.recording.sources):
            _check_audio(source)
        import lhotse

        # Other backends start programs, which may open more than this file.
        lhotse.audio.set_current_audio_backend(lhotse.audio.backend.LibsndfileBackend())
        return self._extractor(cut.load_audio(), int(cut.sampling_rate))

    def _alignment_labels(self, cut: Any, num_frames: int) -> Int32s:
        """Returns the classes of a cut's frames, from the alignment of its supervisions."""
        if not num_frames:
            raise UtteranceError("no frames")
        n, outside = self._options.states_per_symbol, next(iter(self._symbols.values()))
        labels = np.full(num_frames, outside * n, np.int32)
        shift = cut.duration / num_frames
        for item in self._alignment(cut):
            number = self._symbols.get(item.symbol or EMPTY, None if item.symbol else outside)
            if number is None:
                raise UtteranceError(f"symbol {item.symbol!r:.60} is not in the table of alignment_symbols")
            # An item's start is relative to the start of the recording, not of the cut.
            first, last = (round((t - cut.start) / shift) for t in (item.start, item.start + item.duration))
            # If an item extends beyond the cut, only the states within the cut are used.
            frames = np.arange(max(first, 0), min(last, num_frames))
            labels[frames] = number * n + (frames - first) * n // max(1, last - first)
        return labels

    def _alignment(self, cut: Any) -> Sequence[Any]:
        """Returns the items of a cut's alignment, from its supervisions or from the files next to the manifest."""
        found: list[Any] = []
        is_whole = True
        for supervision in cut.supervisions:
            items = (supervision.alignment or {}).get(self._options.alignment)
            own = items or self._alignment_in_files(cut, supervision)
            # Speech without alignment would be labelled as silence.
            is_whole = is_whole and bool(own or not supervision.text)
            found += own
        if not found or not is_whole:
            where = f" or in {self._options.files}" if self._files else "; alignment_files can name files of it"
            raise UtteranceError(f"{UNALIGNED} of type {self._options.alignment} in its supervisions{where}")
        return found

    def _alignment_in_files(self, cut: Any, supervision: Any) -> Sequence[Segment]:
        if self._files is None:
            return []
        channel = supervision.channel if isinstance(supervision.channel, int) else 0
        if supervision.id != supervision.recording_id and (own := self._files.find(supervision.id, channel)):
            start = cut.start + supervision.start
            return [Segment(item.symbol, item.start + start, item.duration) for item in own]
        return self._files.find(supervision.recording_id, channel) or []

    def _attached_labels(self, cut: Any) -> Int32s:
        name = self._options.array
        manifest = (cut.custom or {}).get(name)
        if not hasattr(manifest, "storage_type") and not hasattr(manifest, "array"):
            raise UtteranceError(f"no array {name!r} is attached to it")
        labels = np.asarray(cut.load_custom(name))
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise UtteranceError(f"array {name!r} is {labels.dtype}{labels.shape}, expected one integer per frame")
        if labels.size and not 0 <= labels.min() <= labels.max() < MAX_CLASSES:
            raise UtteranceError(
                f"array {name!r} has labels from {labels.min()} to {labels.max()}, allowed are 0 - {MAX_CLASSES - 1}"
            )
        return labels

    def _largest_label(self, cut: Any) -> int:
        try:
            speech, _ = _call_checked(_speech, cut, self._options.array)
            return int(_call_checked(self._attached_labels, speech).max(initial=0))
        except UtteranceError:  # `read` reports it
            return 0


def _speech(cut: Any, array: str | None) -> tuple[Any, Any]:
    """Returns the speech of a cut, which has the labels, and the cut without padding, which gives the features.

    Raises:
        UtteranceError: the cut is not one utterance, alone or mixed with padding or noise.
    """
    kind = type(cut).__name__
    if kind == "MonoCut":
        return cut, cut
    if kind != "MixedCut":
        raise UtteranceError(f"it is a {kind}; only a MonoCut or a MixedCut can be read")
    tracks = [track for track in cut.tracks if type(track.cut).__name__ == "MonoCut"]
    labelled = [track for track in tracks if track.cut.supervisions or array in (track.cut.custom or {})] or tracks
    if len(labelled) != 1:
        raise UtteranceError(f"it is a mix of {len(labelled)} utterances, expected one and padding or noise")
    (track,) = labelled
    if len(tracks) == 1 and not cut.transforms:
        return track.cut, track.cut
    if not 0 < track.cut.duration <= MAX_MIX:
        raise UtteranceError(f"it is a mix of {track.cut.duration} seconds, at most {MAX_MIX:g} are read")
    return track.cut, cut.truncate(offset=track.offset, duration=track.cut.duration)


def _check_audio(source: Any) -> None:
    """Refuses what is not a file, and a SPHERE file compressed by shorten, which libsndfile would not name."""
    if source.type != "file":
        return
    require_regular_file(source.source)
    if str(source.source).lower().endswith(".sph"):
        with open(source.source, "rb") as f:
            if b"shorten" in f.read(1024):
                raise UtteranceError(f"{source.source}: compressed by shorten; unpack it with sph2pipe")


def _call_checked(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function and converts its exceptions, except a ConfigError, to UtteranceError."""
    try:
        return function(*arguments)
    except ConfigError:
        raise
    except DataError as e:
        raise UtteranceError(str(e).partition("\n[extra info]")[0]) from None  # Lhotse appends all arguments
    except Exception as e:  # Lhotse and its libraries raise various types for damaged data
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
