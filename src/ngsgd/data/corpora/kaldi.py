"""``corpus: kaldi``: reads the data and alignment directories of a Kaldi experiment."""

from __future__ import annotations

import itertools
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from ngsgd.data.corpora import CorpusSettings, FileSettings, register_corpus
from ngsgd.data.corpus import MAX_CLASSES, Float32s, Int32s, Utterance, WordModel, split_bounds
from ngsgd.data.holdout import hold_out, include_copies
from ngsgd.data.kaldi_features import FeatureOptions, Features, numbered
from ngsgd.declare import setting
from ngsgd.errors import ConfigError, DataError, UtteranceError
from ngsgd.files import resolve_path
from ngsgd.kaldi.stream import Input
from ngsgd.kaldi.tables import Script, integers, read_archive, read_lines, skip_integers
from ngsgd.kaldi.transition import TransitionModel, read_transition_model, transitions_to_text

log = logging.getLogger(__name__)

T = TypeVar("T")

PROBED = 20  # utterances read to find the feature dimension


class Labels:
    """Pdf-ids of utterances, from an alignment directory or from an archive of pdf-ids.

    Args:
        path: an alignment directory (``ali.*.gz``, ``final.mdl``), or an archive of pdf-ids.

    Attributes:
        names: the utterances, in the order of the files.
        transitions: the transition model; None for an archive of pdf-ids.

    Raises:
        DataError: a file is missing or malformed.
    """

    def __init__(self, path: Path) -> None:
        self.transitions: TransitionModel | None = None
        self._archives = [path]
        if path.is_dir():
            self._archives = numbered(path, "ali")
            self.transitions = read_transition_model(path / "final.mdl")
        elif not path.exists():
            raise DataError(f"{path}: no such alignment directory, and no such archive of pdf-ids")
        self.names = list(dict.fromkeys(name for name, _ in self._entries(skip_integers)))

    def _entries(
        self, read: Callable[[Input], T], wanted: Callable[[str], bool] | None = None
    ) -> Iterator[tuple[str, T]]:
        return itertools.chain.from_iterable(read_archive(path, read, wanted) for path in self._archives)

    def read(self, names: set[str]) -> Iterator[tuple[str, Int32s]]:
        """Reads the stored integers (frames,) of some utterances, in the order of `names`; `to_pdfs` converts them.

        Raises:
            DataError: an archive is damaged.
        """
        remaining = set(names)
        for name, values in self._entries(integers, remaining.__contains__):
            remaining.remove(name)
            yield name, values

    def to_pdfs(self, values: Int32s) -> Int32s:
        """Converts integers from `read` to pdf-ids.

        Raises:
            UtteranceError: the transition model does not have one of the transition-ids.
        """
        try:
            return values if self.transitions is None else self.transitions.to_pdfs(values)
        except DataError as e:
            raise UtteranceError(f"{e}; are the alignment and final.mdl from one experiment?") from None

    def num_pdfs(self) -> int:
        """Returns the number of pdf-ids: that of the model or, without one, the largest pdf-id used + 1."""
        if self.transitions:
            return self.transitions.num_pdfs
        largest = max((int(values.max(initial=-1)) for _, values in self._entries(integers)), default=-1)
        if largest >= MAX_CLASSES:
            raise DataError(f"{self._archives[0]}: pdf-id {largest}, but at most {MAX_CLASSES} pdf-ids are supported")
        return largest + 1


@dataclass(frozen=True)
class Side:
    """Training or test data: features, labels and, if there is a file ``text``, the transcripts."""

    scp: Script
    features: Features
    labels: Labels
    texts: dict[str, str] | None

    def names(self) -> list[str]:
        """Returns all utterances: first those with an alignment, in its order, then the others."""
        return list(dict.fromkeys([*self.labels.names, *self.scp.entries]))

    def read(self, name: str) -> tuple[Float32s, int]:
        """Returns the features of an utterance and the dimension of its i-vectors, see `Features.of`.

        Raises:
            UtteranceError: the features are missing or unusable.
        """
        if name not in self.scp:
            raise UtteranceError("it has no features")
        try:
            raw = self.scp.read(name)
        except DataError as e:
            raise UtteranceError(str(e)) from None
        return self.features.process(name, raw)


@dataclass(frozen=True)
class Directories:
    """Input directories of the training or test data; see the configuration keys."""

    data: Path
    alignment: Path
    transforms: Path | None
    ivectors: Path | None

    def open(self, options: FeatureOptions, made_with: Path | None) -> Side:
        """Opens the data.

        Args:
            options: feature processing options.
            made_with: alignment directory whose ``final.mat``, ``splice_opts`` and ``cmvn_opts`` apply, or None.

        Raises:
            DataError: a file is missing or malformed.
        """
        utt2spk, text = self.data / "utt2spk", self.data / "text"
        features = Features(
            self.data / "cmvn.scp",
            utt2spk if utt2spk.exists() else None,
            made_with,
            self.transforms,
            self.alignment if self.alignment.is_dir() else None,
            self.ivectors,
            options,
        )
        texts = {name: " ".join(words.split()) for name, words in read_lines(text)} if text.exists() else None
        scp = Script(self.data / "feats.scp", options.root, allow_pipes=options.allow_pipes)
        return Side(scp, features, Labels(self.alignment), texts)


@dataclass(frozen=True, kw_only=True)
class KaldiSettings(FileSettings):
    """`corpus: kaldi`

    `fsdd-kaldi.yaml` and `kaldi.yaml` in this folder are examples; `docs/kaldi.md` lists the files that are read.
    Paths, also those inside `.scp` files, are used as given if they exist, otherwise relative to `experiment`.
    """

    train_data: str | None = setting(
        None,
        "Training data directory with `feats.scp` and, where present, `cmvn.scp`, `utt2spk`, `text`, `utt2uniq`.",
        stage="corpus", is_source=True,
    )  # fmt: skip
    test_data: str | None = setting(None, "Test data directory, likewise.", stage="corpus", is_source=True)
    train_alignment: str | None = setting(
        None,
        "Alignment directory of the training data with `ali.*.gz` and `final.mdl`, or an archive of pdf-ids.",
        stage="corpus", is_source=True,
    )  # fmt: skip
    test_alignment: str | None = setting(
        None, "Alignment directory of the test data, or an archive of pdf-ids.", stage="corpus", is_source=True
    )
    silence_phones: str | None = setting(
        None,
        "Phones that the feature transform ignores, as `1:2:3` or a file with such a line (`phones/silence.csl`); null "
        "for none.",
        stage="corpus", is_source=True,
    )  # fmt: skip
    feature_type: Literal["raw", "lda"] | None = setting(
        None,
        "`raw`, or `lda` for splicing and `final.mat` of the alignment directory; null for `lda` if that file exists "
        "and `train_transforms` has no `raw_trans.1`.",
        stage="corpus", kaldi="feat-type",
    )  # fmt: skip
    cmvn_opts: str | None = setting(
        None,
        "Options of `apply-cmvn` (`--norm-means`, `--norm-vars`, `--skip-dims`); null for the alignment directory's "
        "`cmvn_opts`, or means only if it has none.",
        stage="corpus",
    )
    delta_order: int = setting(
        0, "Order of the time derivatives appended to raw features.", stage="corpus", minimum=0, maximum=9
    )
    train_transforms: str | None = setting(
        None,
        "Directory with `trans.*` (fMLLR by speaker) of the training data, or `raw_trans.*` for raw features.",
        stage="corpus", is_source=True, kaldi="transform-dir",
    )  # fmt: skip
    test_transforms: str | None = setting(
        None, "Directory with the transforms of the test data, likewise.", stage="corpus", is_source=True
    )
    train_ivectors: str | None = setting(
        None,
        "Directory with `ivector_online.scp` and `ivector_period` of the training data.",
        stage="corpus", is_source=True, kaldi="online-ivector-dir",
    )  # fmt: skip
    test_ivectors: str | None = setting(
        None, "Directory with the i-vectors of the test data, likewise.", stage="corpus", is_source=True
    )

    def check(self) -> None:
        for name in ("train_data", "train_alignment", "test_data", "test_alignment"):
            if getattr(self, name) is None:
                raise ConfigError(f"corpus: kaldi needs {name}")


@register_corpus("kaldi")
class KaldiCorpus:
    """A Kaldi experiment, read utterance by utterance; see `Corpus`.

    Args:
        train, test: input directories.
        options: feature processing options.
        valid_utterances: file with one validation utterance per line; None to hold out training utterances.
        num_valid_utterances: how many to hold out then; copies of one utterance (``utt2uniq``) stay together.
        silence_phones: phone numbers such as ``1:2:3``, or a file with them; None for no silence.

    Raises:
        DataError: a file is missing or malformed.
        ConfigError: a setting does not match the data.
    """

    settings_type: ClassVar[type[CorpusSettings]] = KaldiSettings
    phones: tuple[str, ...] = ()

    @classmethod
    def from_settings(cls, settings: KaldiSettings) -> KaldiCorpus:
        def directories(side: str) -> Directories:
            data, alignment = settings.path(f"{side}_data"), settings.path(f"{side}_alignment")
            assert data is not None
            assert alignment is not None
            return Directories(data, alignment, settings.path(f"{side}_transforms"), settings.path(f"{side}_ivectors"))

        return cls(
            directories("train"),
            directories("test"),
            FeatureOptions(
                root=Path(settings.experiment),
                cmvn=settings.cmvn_opts,
                feature_type=settings.feature_type,
                delta_order=settings.delta_order,
                allow_pipes=settings.allow_pipes,
            ),
            settings.path("valid_utterances"),
            settings.num_valid_utterances,
            settings.silence_phones,
        )

    def __init__(
        self,
        train: Directories,
        test: Directories,
        options: FeatureOptions,
        valid_utterances: Path | None,
        num_valid_utterances: int,
        silence_phones: str | None,
    ) -> None:
        self.words: list[WordModel] = []
        # As in Kaldi, the feature options of the training alignments also apply to the test set.
        made_with = train.alignment if train.alignment.is_dir() else None
        self._sides = {"train": train.open(options, made_with), "test": test.open(options, made_with)}
        transitions = self._sides["train"].labels.transitions
        num_pdfs = {name: side.labels.num_pdfs() for name, side in self._sides.items()}
        if transitions and num_pdfs["test"] != num_pdfs["train"] and self._sides["test"].labels.transitions:
            raise DataError(
                f"{test.alignment}: its model has {num_pdfs['test']} pdf-ids, but that of {train.alignment} has "
                f"{num_pdfs['train']}; align the test set with the same model"
            )
        self.num_classes = num_pdfs["train"] if transitions else max(num_pdfs.values())
        self.transition_model = transitions_to_text(transitions) if transitions else None
        self.silence: list[int] = []
        if silence_phones is not None:
            if transitions is None:
                raise ConfigError("silence_phones: needs an alignment directory, an archive of pdf-ids has no phones")
            self.silence = transitions.silence_pdfs(_phones(silence_phones, options.root))
        uniq_file = train.data / "utt2uniq"
        uniq = dict(read_lines(uniq_file)) if uniq_file.exists() else {}
        names = self._sides["train"].names()
        if valid_utterances:
            listed = {name for name, _ in read_lines(valid_utterances)}
            self._valid = include_copies(listed, names, uniq)
            if not self._valid:
                raise DataError(f"{valid_utterances}: none of its utterances is in {train.data}")
            if unknown := listed.difference(names):
                log.warning("%s: %d of its utterances are not in %s", valid_utterances, len(unknown), train.data)
        else:
            self._valid = hold_out(names, num_valid_utterances, uniq)
        self.dim, self.const_dim = self._probe(train.data)

    def read(self, subset: str, part: int, num_parts: int, drop: Callable[[str, str], None]) -> Iterator[Utterance]:
        """Reads the utterances of one part of a subset; see `Corpus`."""
        side = self._sides["test" if subset == "test" else "train"]
        names = side.names()
        first, last = split_bounds(len(names), part, num_parts)
        wanted = {n: None for n in names[first:last] if subset == "test" or (n in self._valid) == (subset == "valid")}
        for name, values in side.labels.read(set(wanted)):
            del wanted[name]
            try:
                labels = side.labels.to_pdfs(values)
                features, const_dim = side.read(name)
                if const_dim != self.const_dim:
                    raise UtteranceError(f"i-vectors of dimension {const_dim}, expected {self.const_dim}")
                if side.texts is not None and name not in side.texts:
                    raise UtteranceError("it has no line in text")
            except UtteranceError as e:
                drop(name, str(e))
                continue
            yield Utterance(name, features, labels, side.texts[name] if side.texts else "")
        for name in wanted:
            drop(name, "it has no alignment")

    def _probe(self, where: Path) -> tuple[int, int]:
        """Returns the most frequent feature and i-vector dimensions of the first utterances."""
        reason, found = "it is empty", Counter[tuple[int, int]]()
        for name in self._sides["train"].names()[:PROBED]:
            try:
                features, const_dim = self._sides["train"].read(name)
                found[features.shape[1], const_dim] += 1
            except UtteranceError as e:
                reason = f"{name}: {e}"
        if not found:
            raise DataError(f"{where}: none of its first utterances can be read; the last error: {reason}")
        return found.most_common(1)[0][0]


def _phones(text: str, root: Path) -> list[int]:
    if not re.fullmatch(r"\d{1,9}(:\d{1,9})*", text):
        path = resolve_path(text, root)
        try:
            text = path.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as e:
            raise ConfigError(
                f"silence_phones: neither phone numbers such as 1:2:3 nor a file with them ({e})"
            ) from None
        if not re.fullmatch(r"\d{1,9}(:\d{1,9})*", text):
            raise ConfigError(f"silence_phones: {path} has {text!r:.60}, expected phone numbers such as 1:2:3")
    return [int(phone) for phone in text.split(":")]
