"""``corpus: kaldi``: reads the data and alignment directories of a Kaldi experiment."""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

import numpy as np

from ngsgd.data.corpora import CorpusSettings, FileSettings, register_corpus
from ngsgd.data.corpus import MAX_CLASSES, NUM_NAMED, UNALIGNED, Float32s, Int32s, Utterance, WordModel, split_bounds
from ngsgd.data.holdout import hold_out, include_copies
from ngsgd.data.kaldi_features import FeatureOptions, Features, config_files, numbered
from ngsgd.declare import setting
from ngsgd.errors import ConfigError, DataError, UtteranceError
from ngsgd.files import file_stamp, resolve_path
from ngsgd.kaldi.stream import Input
from ngsgd.kaldi.tables import Script, integers, read_archive, read_lines, skip_integers, split_words
from ngsgd.kaldi.transition import TransitionModel, read_transition_model, transitions_to_text

log = logging.getLogger(__name__)

T = TypeVar("T")

# The files of each directory that are read; others may come and go.
DATA_FILES = ("feats.scp", "cmvn.scp", "utt2spk", "text", "utt2uniq")
TRANSFORM_FILES = ("trans.*", "raw_trans.*", "num_jobs")
ALIGNMENT_FILES = (
    *("ali.*", "final.mdl", "final.mat", "splice_opts", "cmvn_opts", "frame_subsampling_factor"),
    *TRANSFORM_FILES,
)
IVECTOR_FILES = ("ivector_online.scp", "ivector_period")

PHONES = r"\d{1,9}(:\d{1,9})*"  # regular expression of phone numbers such as 1:2:3
NO_TRANSFORMS = "none"  # value of `train_transforms` and `test_transforms`
PROBED = 20  # utterances read to find the feature dimension


def check_frame_rate(alignment: Path) -> None:
    """Checks that an alignment directory has a label for every frame.

    Raises:
        DataError: it is of a chain model, which has one for every third frame.
    """
    path = alignment / "frame_subsampling_factor"
    try:
        factor = path.read_text(encoding="utf-8-sig").strip() if path.exists() else "1"
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: cannot be read ({e})") from None
    if factor != "1":
        raise DataError(
            f"{alignment} is of a chain model, which has one label for every {factor} frames; give an alignment of a "
            "GMM (steps/align_si.sh, steps/align_fmllr.sh)"
        )


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
            check_frame_rate(path)
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
class DataDirectory:
    """The opened training or test data.

    Attributes:
        scp: the features.
        features: their processing.
        labels: the alignment; None if there is none.
        texts: the transcripts; None without a file ``text``.
    """

    scp: Script
    features: Features
    labels: Labels | None
    texts: dict[str, str] | None

    def names(self) -> list[str]:
        """Returns the utterances of ``feats.scp``: first those with an alignment, in its order, then the others."""
        aligned = [name for name in self.labels.names if name in self.scp] if self.labels else []
        return list(dict.fromkeys([*aligned, *self.scp.entries]))

    def read(self, name: str) -> tuple[Float32s, int]:
        """Returns the features of an utterance and the dimension of its i-vectors, see `Features.process`.

        Raises:
            UtteranceError: the features are missing or unusable.
        """
        try:
            raw = self.scp.read(name)
        except DataError as e:
            raise UtteranceError(str(e)) from None
        return self.features.process(name, raw)

    def utterance(self, name: str, values: Int32s | None, const_dim: int, silence_phones: list[int]) -> Utterance:
        """Returns an utterance.

        Args:
            name: name of the utterance.
            values: stored integers of its alignment; None if it has none.
            const_dim: expected dimension of its i-vectors.
            silence_phones: phones that are silence.

        Raises:
            UtteranceError: the utterance is unusable.
        """
        features, own_const_dim = self.read(name)
        if own_const_dim != const_dim:
            raise UtteranceError(f"i-vectors of dimension {own_const_dim}, expected {const_dim}")
        if self.texts is not None and name not in self.texts:
            raise UtteranceError("it has no line in text")
        pdfs, silence = None, None
        if values is not None:
            assert self.labels is not None
            pdfs = self.labels.to_pdfs(values)
            if silence_phones and self.labels.transitions is not None:
                silence = np.isin(self.labels.transitions.id_phones[values], silence_phones)
        text = self.texts[name] if self.texts else ""
        return Utterance(name, features, pdfs, text, silence, self.features.speaker(name))


@dataclass(frozen=True)
class DataPaths:
    """Input directories of the training or test data; see the configuration keys.

    Attributes:
        name: ``train`` or ``test``, with which the names of its settings begin.
        data, alignment, transforms, ivectors: the directories; None where the setting is null.
        no_transforms: whether transforms of the alignment directory are ignored, too.
    """

    name: str
    data: Path
    alignment: Path | None = None
    transforms: Path | None = None
    ivectors: Path | None = None
    no_transforms: bool = False

    def open(self, options: FeatureOptions, made_with: Path | None) -> DataDirectory:
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
            None if self.no_transforms else self.alignment_directory,
            self.ivectors,
            options,
        )
        texts = {name: " ".join(split_words(words)) for name, words in read_lines(text)} if text.exists() else None
        scp = Script(self.data / "feats.scp", options.locations)
        return DataDirectory(scp, features, Labels(self.alignment) if self.alignment else None, texts)

    @property
    def alignment_directory(self) -> Path | None:
        """The alignment directory; None for an archive of pdf-ids."""
        return self.alignment if self.alignment is not None and self.alignment.is_dir() else None


@dataclass(frozen=True, kw_only=True)
class KaldiSettings(FileSettings):
    """`corpus: kaldi`

    `fsdd-kaldi.yaml` and `kaldi.yaml` in this folder are examples; `docs/kaldi.md` lists the files that are read.
    Paths, also those inside `.scp` files, are used as given if they exist, otherwise relative to `experiment`.
    """

    train_data: str | None = setting(
        None,
        "Training data directory with `feats.scp` and, where present, `cmvn.scp`, `utt2spk`, `text`, `utt2uniq`.",
        stage="corpus", is_source=True, files=DATA_FILES,
    )  # fmt: skip
    test_data: str | None = setting(
        None, "Test data directory, likewise.", stage="corpus", is_source=True, files=DATA_FILES
    )
    train_alignment: str | None = setting(
        None,
        "Alignment directory of the training data with `ali.*.gz` and `final.mdl`, or an archive of pdf-ids.",
        stage="corpus", is_source=True, files=ALIGNMENT_FILES,
    )  # fmt: skip
    test_alignment: str | None = setting(
        None,
        "Alignment directory of the test data, or an archive of pdf-ids; null for none: then the final model is scored "
        "by its words alone, if there is a `graph`.",
        stage="corpus", is_source=True, files=ALIGNMENT_FILES,
    )  # fmt: skip
    silence_phones: str | None = setting(
        None,
        "Phones that the feature transform ignores, as `1:2:3` or a file with such a line (`phones/silence.csl`); null "
        "for none.",
        stage="corpus", is_source=True, not_a_path=PHONES,
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
        "Directory with `trans.*` (fMLLR by speaker) of the training data, or `raw_trans.*` for raw features; null for "
        "those of `train_alignment`, if it has any; `none` to use none. Training and test data are transformed alike.",
        stage="corpus", is_source=True, files=TRANSFORM_FILES, kaldi="transform-dir", not_a_path=NO_TRANSFORMS,
    )  # fmt: skip
    test_transforms: str | None = setting(
        None,
        "Directory with the transforms of the test data, likewise, such as a decoding directory.",
        stage="corpus", is_source=True, files=TRANSFORM_FILES, not_a_path=NO_TRANSFORMS,
    )  # fmt: skip
    train_ivectors: str | None = setting(
        None,
        "Directory with `ivector_online.scp` and `ivector_period` of the training data.",
        stage="corpus", is_source=True, files=IVECTOR_FILES, kaldi="online-ivector-dir",
    )  # fmt: skip
    test_ivectors: str | None = setting(
        None,
        "Directory with the i-vectors of the test data, likewise.",
        stage="corpus", is_source=True, files=IVECTOR_FILES,
    )  # fmt: skip

    def check(self) -> None:
        for name in ("train_data", "train_alignment", "test_data"):
            if getattr(self, name) is None:
                raise ConfigError(f"corpus: kaldi needs {name}")
        if (self.train_ivectors is None) != (self.test_ivectors is None):
            raise ConfigError("train_ivectors and test_ivectors: give both or neither")

    def check_sources(self) -> None:
        super().check_sources()
        for name in ("train_data", "test_data"):
            folder = self.path(name)
            if folder is not None and not (folder / "feats.scp").exists():
                raise ConfigError(f"{name}: {folder} has no feats.scp; extract features first (make_mfcc.sh)")
        for name in ("train_alignment", "test_alignment"):
            if (alignment := self.path(name)) is not None:
                try:
                    check_frame_rate(alignment)
                except DataError as e:
                    raise ConfigError(f"{name}: {e}") from None

    def check_words(self) -> None:
        for name in ("train_data", "test_data"):
            folder = self.path(name)
            if folder is not None and not (folder / "text").exists():
                raise ConfigError(f"{name}: {folder} has no file text, with which decoded words are compared")
        alignment = self.path("train_alignment")
        if alignment is not None and not alignment.is_dir():
            raise ConfigError(
                f"graph: its transition-ids mean nothing without a model: train_alignment ({alignment}) must be an "
                "alignment directory with final.mdl"
            )

    def stamps(self) -> list[str]:
        options = [self.cmvn_opts or ""]
        if (alignment := self.path("train_alignment")) and self.cmvn_opts is None:
            with contextlib.suppress(OSError, ValueError):  # opening the corpus reports it
                options.append((alignment / "cmvn_opts").read_text(encoding="utf-8-sig"))
        files = [resolve_path(name, self.root) for text in options for name in config_files(text)]
        return [f"cmvn_opts {file_stamp(path)}" for path in files]


@register_corpus("kaldi")
class KaldiCorpus:
    """A Kaldi experiment, read utterance by utterance; see `Corpus`.

    ``feats.scp`` says which utterances there are, as in ``steps/nnet2/get_egs2.sh``. Training and validation utterances
    need an alignment; test utterances may have one.

    Args:
        train, test: input directories.
        options: feature processing options.
        valid_utterances: file with one validation utterance per line; None to hold out training utterances.
        num_valid_utterances: how many to hold out then; copies of one utterance (``utt2uniq``) stay together.
        silence_phones: phone numbers such as ``1:2:3``, or a file with them; None for no silence.

    Raises:
        DataError: a file is missing or malformed, or training and test data are not transformed alike.
        ConfigError: a setting does not match the data.
    """

    settings_type: ClassVar[type[CorpusSettings]] = KaldiSettings
    phones: tuple[str, ...] = ()

    @classmethod
    def from_settings(cls, settings: KaldiSettings) -> KaldiCorpus:
        def paths(name: str) -> DataPaths:
            data = settings.path(f"{name}_data")
            assert data is not None
            return DataPaths(
                name,
                data,
                settings.path(f"{name}_alignment"),
                settings.path(f"{name}_transforms"),
                settings.path(f"{name}_ivectors"),
                no_transforms=getattr(settings, f"{name}_transforms") == NO_TRANSFORMS,
            )

        return cls(
            paths("train"),
            paths("test"),
            FeatureOptions(
                settings.locations(),
                cmvn=settings.cmvn_opts,
                feature_type=settings.feature_type,
                delta_order=settings.delta_order,
            ),
            settings.path("valid_utterances"),
            settings.num_valid_utterances,
            settings.path("silence_phones") or settings.silence_phones,
        )

    def __init__(
        self,
        train: DataPaths,
        test: DataPaths,
        options: FeatureOptions,
        valid_utterances: Path | None,
        num_valid_utterances: int,
        silence_phones: str | Path | None,
    ) -> None:
        self.words: list[WordModel] = []
        self._paths = {"train": train, "test": test}
        # As in Kaldi, the feature options of the training alignments also apply to the test set.
        made_with = train.alignment_directory
        self._directories = {name: paths.open(options, made_with) for name, paths in self._paths.items()}
        if options.feature_type != "raw":
            _check_same_final_mat(train, test)
        _check_same_transforms(self._paths, self._directories)
        labels = self._directories["train"].labels
        assert labels is not None
        self.num_classes = self._count_classes(labels, self._directories["test"].labels)
        self.transition_model = transitions_to_text(labels.transitions) if labels.transitions else None
        self._silence_phones: list[int] = []
        if silence_phones is not None:
            if labels.transitions is None:
                raise ConfigError("silence_phones: needs an alignment directory, an archive of pdf-ids has no phones")
            self._silence_phones = _phones(silence_phones)
            labels.transitions.check_phones(self._silence_phones)
        uniq_file = train.data / "utt2uniq"
        uniq = dict(read_lines(uniq_file)) if uniq_file.exists() else {}
        names = self._directories["train"].names()
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

    def _count_classes(self, train: Labels, test: Labels | None) -> int:
        """Returns the number of pdf-ids.

        Raises:
            DataError: training and test data were aligned with different models.
        """
        if test is None:
            return train.num_pdfs()
        if train.transitions is None:
            return max(train.num_pdfs(), test.num_pdfs())
        if test.transitions and not np.array_equal(train.transitions.tuples, test.transitions.tuples):
            raise DataError(
                f"{self._paths['test'].alignment}: its model has {test.num_pdfs()} pdf-ids and "
                f"{len(test.transitions.tuples)} states, that of {self._paths['train'].alignment} has "
                f"{train.num_pdfs()} and {len(train.transitions.tuples)}, or assigns them otherwise; align the test "
                "set with the same model, or set test_alignment: null"
            )
        return train.num_pdfs()

    def read(self, subset: str, part: int, num_parts: int, drop: Callable[[str, str], None]) -> Iterator[Utterance]:
        """Reads the utterances of one part of a subset; see `Corpus`."""
        name = "test" if subset == "test" else "train"
        directory = self._directories[name]
        names = directory.names()
        if part == 0 and subset != "valid":
            self._report_foreign_alignments(name)
        first, last = split_bounds(len(names), part, num_parts)
        wanted = {n: None for n in names[first:last] if subset == "test" or (n in self._valid) == (subset == "valid")}

        def read(utterance: str, values: Int32s | None) -> Iterator[Utterance]:
            try:
                yield directory.utterance(utterance, values, self.const_dim, self._silence_phones)
            except UtteranceError as e:
                drop(utterance, str(e))

        for utterance, values in directory.labels.read(set(wanted)) if directory.labels else ():
            del wanted[utterance]
            yield from read(utterance, values)
        for utterance in wanted:
            if subset == "test":
                yield from read(utterance, None)
            else:
                drop(utterance, UNALIGNED)

    def _report_foreign_alignments(self, name: str) -> None:
        """Logs how many alignments are of utterances that are not in the data directory."""
        directory, paths = self._directories[name], self._paths[name]
        aligned = directory.labels.names if directory.labels else []
        if foreign := [utterance for utterance in aligned if utterance not in directory.scp]:
            log.warning(
                "%s: %d of %d alignments are not used, since their utterances are not in %s; the first: %s",
                paths.alignment, len(foreign), len(aligned), paths.data / "feats.scp", ", ".join(foreign[:NUM_NAMED]),
            )  # fmt: skip

    def _probe(self, where: Path) -> tuple[int, int]:
        """Returns the most frequent feature and i-vector dimensions of the first utterances."""
        reason, found = "it is empty", Counter[tuple[int, int]]()
        for name in self._directories["train"].names()[:PROBED]:
            try:
                features, const_dim = self._directories["train"].read(name)
                found[features.shape[1], const_dim] += 1
            except UtteranceError as e:
                reason = f"{name}: {e}"
        if not found:
            raise DataError(f"{where}: none of its first utterances can be read; the last error: {reason}")
        return found.most_common(1)[0][0]


def _check_same_final_mat(train: DataPaths, test: DataPaths) -> None:
    """Checks that the alignment directories of training and test data have the same ``final.mat``.

    Raises:
        DataError: they have not.
    """
    if train.alignment_directory is None or test.alignment_directory is None:
        return
    paths = [directory / "final.mat" for directory in (train.alignment_directory, test.alignment_directory)]
    stamps = [file_stamp(path) for path in paths]
    if stamps[0] != stamps[1]:
        raise DataError(
            f"{paths[0]} (train_alignment) and {paths[1]} (test_alignment) differ, or one of them is missing; align "
            "the test set with the same model, or set test_alignment: null"
        )


def _check_same_transforms(paths: Mapping[str, DataPaths], directories: Mapping[str, DataDirectory]) -> None:
    """Checks that fMLLR transforms are applied to training and test data, or to neither.

    Raises:
        DataError: they are applied to one of them only.
    """
    folders = {name: directory.features.transforms_folder for name, directory in directories.items()}
    for name, other in (("train", "test"), ("test", "train")):
        if folders[name] is not None and folders[other] is None:
            raise DataError(
                f"{paths[name].data} ({name}_data) is transformed by the fMLLR transforms of {folders[name]}, but "
                f"there are none for {paths[other].data} ({other}_data): set {other}_transforms to a directory with "
                f"its trans.*, or {name}_transforms: none"
            )


def _phones(source: str | Path) -> list[int]:
    """Returns phones from text such as ``1:2:3``, or from a file with it."""
    text = str(source)
    if isinstance(source, Path):
        try:
            text = source.read_text(encoding="utf-8-sig").strip()
        except (OSError, ValueError) as e:
            raise ConfigError(
                f"silence_phones: neither phone numbers such as 1:2:3 nor a file with them ({e})"
            ) from None
        if not re.fullmatch(PHONES, text):
            raise ConfigError(f"silence_phones: {source} has {text!r:.60}, expected phone numbers such as 1:2:3")
    return [int(phone) for phone in text.split(":")]
