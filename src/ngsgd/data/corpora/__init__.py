"""The corpora: each is a module here, with a registered class that reads it and with the declarations of its settings.

To add a corpus, add a module: nothing else has a list of them. It is prepared in parts (`ngsgd.data.parts`).
"""

from __future__ import annotations

import fnmatch
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from ngsgd import registry
from ngsgd.data.corpus import Utterance, WordModel
from ngsgd.declare import declared, setting
from ngsgd.errors import ConfigError, DataError
from ngsgd.files import digest, expand_path, file_stamp, resolve_path, scp_targets
from ngsgd.kaldi.tables import Locations


@dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """The corpus

    `corpus` names the source of the data; each source has settings of its own below.
    """

    experiment: str = setting(".", "Folder that paths are relative to.", stage="corpus", not_empty=True)
    num_valid_utterances: int = setting(
        300,
        "Number of utterances held out for validation. They are chosen by their names alone, not by a seed; copies "
        "of one recording (`utt2uniq`, Lhotse's `_sp0.9`) stay together.",
        stage="corpus", minimum=1,
    )  # fmt: skip
    max_bad_utterance_share: float = setting(
        0.01,
        "Share of unusable utterances above which the run stops. Up to it they are dropped, each with a warning in the "
        "log and its reason in `corpus.json`.",
        stage="corpus", minimum=0, maximum=1,
    )  # fmt: skip
    max_unaligned_utterance_share: float = setting(
        0.5,
        "Share of utterances without alignment above which the run stops. Up to it they are dropped likewise.",
        stage="corpus", minimum=0, maximum=1,
    )  # fmt: skip

    def path(self, name: str) -> Path | None:
        """The path of a setting, as it is if it exists, otherwise relative to ``experiment``; None if it has none."""
        value, not_a_path = getattr(self, name), declared(type(self))[name].not_a_path
        if value is None or (not_a_path is not None and re.fullmatch(not_a_path, value)):
            return None
        return resolve_path(expand_path(value), self.root)

    @property
    def root(self) -> Path:
        """The folder that paths are relative to."""
        return Path(expand_path(self.experiment))

    def check(self) -> None:
        """Checks that the settings match each other.

        Raises:
            ConfigError: they do not.
        """

    def check_sources(self) -> None:
        """Checks that the files and folders that settings name exist.

        Raises:
            ConfigError: one does not.
        """
        for name, declaration in declared(type(self)).items():
            if declaration.is_source and (path := self.path(name)) is not None:
                check_exists(name, path, self.root)

    def check_words(self) -> None:
        """Checks that the corpus has what decoding with a graph needs.

        Raises:
            ConfigError: it has not.
        """

    def sources(self) -> list[str]:
        """Fingerprints of the contents of everything that the corpus is made from.

        Raises:
            ConfigError: a package that the data comes from is not installed.
        """
        stamps = self.stamps()
        for name, declaration in declared(type(self)).items():
            if declaration.is_source and (path := self.path(name)) is not None:
                stamps += path_stamps(name, path, self.root, self.expanded_path_map(), declaration.files)
        return stamps

    def expanded_path_map(self) -> dict[str, str]:
        """Replacements of the start of paths inside files; see `FileSettings`."""
        return {}

    def stamps(self) -> list[str]:
        """Fingerprints of what the data depends on apart from the values of settings and the files that they name.

        Raises:
            ConfigError: a package that the data comes from is not installed.
        """
        return []


def path_stamps(
    name: str, path: Path, root: Path, path_map: Mapping[str, str], patterns: tuple[str, ...] | None = None
) -> list[str]:
    """Fingerprints of the contents of a file or folder, and of the files that its ``.scp`` files point into.

    Args:
        name: of the setting that gives the path.
        path: the file or folder.
        root, path_map: see `ngsgd.kaldi.tables.Locations`.
        patterns: of the names of the files in a folder that count; None for all.
    """
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and (patterns is None or _matches(p, patterns)))
    targets = {other for p in files if p.suffix == ".scp" for other in scp_targets(p, root, path_map)}
    return [f"{name} {p.name} {file_stamp(p)}" for p in files] + [
        f"{name} {other} {file_stamp(other, hashed=0)}" for other in sorted(targets - set(files))
    ]


def _matches(path: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(path.name, pattern) for pattern in patterns)


def check_exists(name: str, path: Path, root: Path) -> None:
    """Checks that the file or folder exists that a setting names.

    Raises:
        ConfigError: it does not.
    """
    if path.exists():
        return
    folders = dict.fromkeys([Path.cwd(), root.resolve()]) if path.is_relative_to(root) else {}
    where = "".join(f"{' or' if k else ''} in {folder}" for k, folder in enumerate(folders))
    raise ConfigError(f"{name}: {path}: no such file or folder{where}")


@dataclass(frozen=True, kw_only=True)
class TestSetSettings(CorpusSettings):
    """Settings of corpora without a test set of their own."""

    __test__: ClassVar[bool] = False  # pytest collects classes named Test*

    num_test_utterances: int = setting(300, "Number of recordings held out for the test.", stage="corpus", minimum=1)


@dataclass(frozen=True, kw_only=True)
class FileSettings(CorpusSettings):
    """Settings of corpora that are read from files of the user."""

    def locations(self) -> Locations:
        """How paths inside files are looked up."""
        return Locations(self.root, self.expanded_path_map(), self.allow_pipes)

    def expanded_path_map(self) -> dict[str, str]:
        """``path_map`` with ``~`` and variables replaced in the new paths."""
        return {old: expand_path(new) for old, new in self.path_map.items()}

    valid_utterances: str | None = setting(
        None,
        "File with one validation utterance per line; null to hold out `num_valid_utterances` of the training data.",
        stage="corpus", is_source=True,
    )  # fmt: skip
    path_map: dict[str, str] = setting(
        {},
        "Replacements of the start of paths inside `.scp` files and Lhotse manifests, for data that was made on "
        "another machine: `{/home/ann/egs/s5: .}` looks for `/home/ann/egs/s5/mfcc/raw.1.ark` in `mfcc/` of "
        "`experiment`.",
        stage="corpus", schema={"type": "object", "additionalProperties": {"type": "string"}},
    )  # fmt: skip
    allow_pipes: bool = setting(
        False,
        "Whether to run commands that `.scp` files have instead of file names, and to open everything that Lhotse "
        "manifests name. Anyone who can write these files can then run programs as you.",
        stage="corpus",
    )


@dataclass(frozen=True, kw_only=True)
class ExtractorSettings(CorpusSettings):
    """Settings of corpora whose features are extracted from audio and whose labels are symbols."""

    feature_extractor: str = setting(
        "kaldi-fbank",
        "Extractor for audio: `kaldi-fbank` or `kaldi-mfcc` with Lhotse's defaults, or a file of settings "
        "(`FeatureExtractor.to_yaml`).",
        stage="corpus", not_empty=True, is_source=True, not_a_path="kaldi-fbank|kaldi-mfcc",
    )  # fmt: skip
    states_per_symbol: int = setting(
        3,
        "Number of classes of each symbol, for equal parts of its frames; 1 if the symbols are states.",
        stage="corpus", minimum=1, maximum=100,
    )  # fmt: skip


class Corpus(Protocol):
    """A data source that can be read in parts; for the attributes see `CorpusInfo`.

    Attributes:
        settings_type: the class that declares its settings; its docstring is its section of ``config/README.md``.
        num_classes: number of classes (pdf-ids).
    """

    settings_type: ClassVar[type[CorpusSettings]]
    dim: int
    const_dim: int
    num_classes: int
    transition_model: str | None
    phones: tuple[str, ...]
    words: list[WordModel]

    @classmethod
    def from_settings(cls, settings: Any) -> Corpus:
        """Opens the corpus.

        Args:
            settings: an object of `settings_type`.

        Raises:
            DataError: a file is missing or malformed.
            ConfigError: a setting does not match the data.
        """
        ...

    def read(self, subset: str, part: int, num_parts: int, drop: Callable[[str, str], None]) -> Iterator[Utterance]:
        """Reads the utterances of one part of a subset.

        The order of the utterances over all parts does not depend on the number of parts.

        Args:
            subset: train, valid or test.
            part: index of the part, from 0.
            num_parts: number of parts.
            drop: called with the name of each utterance that cannot be read, and the reason.

        Raises:
            DataError: the corpus cannot be read at all.
        """
        ...


CorpusType = TypeVar("CorpusType", bound=type)

_corpora: dict[str, Any] = {}


def register_corpus(name: str) -> Callable[[CorpusType], CorpusType]:
    """Registers the decorated class as the corpus that ``corpus: <name>`` selects."""

    def register(corpus_type: CorpusType) -> CorpusType:
        registry.add(_corpora, name, corpus_type)
        return corpus_type

    return register


def corpora() -> Mapping[str, type[Corpus]]:
    """The registered classes by name, in alphabetical order; imports the modules of this package."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return dict(sorted(_corpora.items()))


def corpus_settings(name: str, values: Mapping[str, Any]) -> CorpusSettings:
    """The settings of a corpus from values by name, among which others may be.

    Raises:
        ConfigError: there is no such corpus.
    """
    if name not in corpora():
        raise ConfigError(f"corpus: {name!r} is not one of {', '.join(corpora())}")
    settings_type = corpora()[name].settings_type
    return settings_type(**{key: values[key] for key in settings_type.__dataclass_fields__ if key in values})


def corpus_key(values: Mapping[str, Any]) -> str:
    """Name of the prepared corpus: a digest of the settings and of the contents of its sources.

    Args:
        values: the settings of the corpus and its name, and no others.
    """
    sources = corpus_settings(values["corpus"], values).sources()
    return f"{values['corpus']}-{digest([sources, values])}"


def check_unchanged(values: Mapping[str, Any], key: str) -> None:
    """Checks that a corpus that was read is still the one that its key names.

    Raises:
        DataError: a source was changed in the meantime.
    """
    if corpus_key(values) != key:
        raise DataError(f"the data of corpus {key} was changed while it was read; run again to read it again")


def open_corpus(values: Mapping[str, Any]) -> Corpus:
    """Opens the corpus that ``values["corpus"]`` names, with its settings among the other values.

    Raises:
        DataError: a file is missing or malformed.
        ConfigError: a setting does not match the data.
    """
    name = str(values["corpus"])
    return corpora()[name].from_settings(corpus_settings(name, values))
