"""``corpus: synthetic``: generates each utterance from its own number, so that order and parts do not matter.

The voices of test utterances and the sentences of validation and test utterances do not occur in training. Labels
follow eSpeak's phone timing: the frames of each phone are divided equally between its states.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ngsgd.data.corpora import CorpusSettings, ExtractorSettings, TestSetSettings, register_corpus
from ngsgd.data.corpus import SUBSETS, Int32s, Utterance, WordModel, split_bounds
from ngsgd.data.extractor import Extractor
from ngsgd.data.synthetic.espeak import PHONES, RATE, SILENCE, Speech, Voice, package, say
from ngsgd.data.synthetic.rooms import add_noise, resample, reverberate
from ngsgd.data.synthetic.sentences import sentence
from ngsgd.declare import setting
from ngsgd.errors import ConfigError, UtteranceError

SAMPLING_RATE = 16000
SECONDS = 2.6  # average duration of an utterance
ACCENTS = ("en-us", "en-gb-x-rp", "en-gb-scotland", "en-us-nyc", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
VARIANTS = {
    "train": (
        "m1", "m2", "m3", "m4", "m6", "m7", "f1", "f2", "f3", "f5", "Alex", "Andy", "Annie", "Gene", "Jacky", "Lee",
        "Mario", "Michael", "adam", "belinda", "david", "grandma", "ian", "klatt2", "linda", "norbert", "steph",
    ),
    "test": ("m5", "m8", "f4", "Alicia", "Mike", "edward", "klatt4", "quincy"),
}  # fmt: skip
SPEEDS = (0.9, 1.0, 1.1)  # factors of the speed perturbation of training data
HELD_OUT = {0: "valid", 1: "test"}  # parts of all sentences that belong to these subsets
PARTS = 20


@dataclass(frozen=True, kw_only=True)
class SyntheticSettings(ExtractorSettings, TestSetSettings):
    """`corpus: synthetic`

    `synthetic.yaml` in this folder is an example. eSpeak NG (package `espeakng-loader`) speaks generated sentences in
    six English accents and many voices, speeds and pitches. Rooms and noise are added to all utterances, other speeds
    (0.9, 1.1) to training data. Test utterances have voices that the training data does not have; test and validation
    utterances have sentences that it does not have. Labels are exact, since eSpeak reports where each phone begins.
    Each utterance is generated from its own number: the same seed gives the same corpus for any `num_splits`. The
    final model is scored by the phone error rate of a phone loop.
    """

    hours: float = setting(
        1.0, "Approximate amount of training speech.", stage="corpus", above=0, maximum=100_000, unit="hours"
    )
    corpus_seed: int = setting(0, "Seed of sentences, voices, rooms and noise.", stage="corpus", minimum=0)

    def stamps(self) -> list[str]:
        try:
            return [f"{name} {importlib.metadata.version(name)}" for name in ("espeakng-loader", "lhotse")]
        except importlib.metadata.PackageNotFoundError as e:
            raise ConfigError(f"corpus: synthetic: the package {e.name} is not installed; see `make env`") from None


@register_corpus("synthetic")
class SyntheticCorpus:
    """A corpus that is generated on demand; see `Corpus`.

    Args:
        hours: approximate amount of training speech.
        num_valid_utterances, num_test_utterances: numbers of utterances, of about 2.6 s each.
        extractor: ``kaldi-fbank``, ``kaldi-mfcc``, or a YAML file of extractor settings written by Lhotse.
        root: folder for a relative path to that file that does not exist in the working directory.
        states_per_symbol: number of classes of each phone.
        seed: random seed of the whole corpus.

    Raises:
        DataError: eSpeak NG is not installed.
        ConfigError: the extractor does not exist.
    """

    settings_type: ClassVar[type[CorpusSettings]] = SyntheticSettings
    const_dim = 0
    transition_model: str | None = None
    phones: tuple[str, ...] = PHONES

    @classmethod
    def from_settings(cls, settings: SyntheticSettings) -> SyntheticCorpus:
        return cls(
            settings.hours,
            settings.num_valid_utterances,
            settings.num_test_utterances,
            settings.feature_extractor,
            settings.root,
            settings.states_per_symbol,
            settings.corpus_seed,
        )

    def __init__(
        self,
        hours: float,
        num_valid_utterances: int,
        num_test_utterances: int,
        extractor: str,
        root: Path,
        states_per_symbol: int,
        seed: int,
    ) -> None:
        package()
        self.words: list[WordModel] = []
        num_train = max(1, round(3600.0 * hours / SECONDS))
        self._numbers = {"train": num_train, "valid": num_valid_utterances, "test": num_test_utterances}
        self._extractor = Extractor(extractor, root)
        self._states, self._seed = states_per_symbol, seed
        self.num_classes = len(PHONES) * states_per_symbol
        self.dim = self._extractor(np.zeros(SAMPLING_RATE, np.float32), SAMPLING_RATE).shape[1]

    def read(self, subset: str, part: int, num_parts: int, drop: Callable[[str, str], None]) -> Iterator[Utterance]:
        """Generates the utterances of one part of a subset; see `Corpus`."""
        for number in range(*split_bounds(self._numbers[subset], part, num_parts)):
            name = f"{subset}-{number:07d}"
            try:
                yield self._utterance(subset, number, name)
            except UtteranceError as e:
                drop(name, str(e))

    def _utterance(self, subset: str, number: int, name: str) -> Utterance:
        rng = np.random.default_rng([self._seed, SUBSETS.index(subset), number])
        text = sentence(rng, lambda text: part_of(text) == subset)
        variants = VARIANTS["test" if subset == "test" else "train"]
        voice = Voice(
            f"{ACCENTS[rng.integers(len(ACCENTS))]}+{variants[rng.integers(len(variants))]}",
            speed=int(rng.integers(130, 230)),
            pitch=int(rng.integers(25, 76)),
            pitch_range=int(rng.integers(20, 81)),
        )
        speech = say(text, voice)
        pace = SPEEDS[rng.integers(len(SPEEDS))] if subset == "train" else 1.0
        samples = resample(speech.samples, round(RATE * pace), SAMPLING_RATE)
        samples *= np.float32(rng.uniform(0.1, 0.9) / max(1e-3, float(np.abs(samples).max())))
        if rng.random() < 0.5:
            samples = reverberate(samples, SAMPLING_RATE, rng.uniform(0.1, 0.5), rng.uniform(0.05, 0.5), rng)
        samples = add_noise(samples, rng.uniform(0.0, 2.0), rng.uniform(5.0, 35.0), rng)
        features = self._extractor(samples, SAMPLING_RATE)
        seconds = len(samples) / SAMPLING_RATE
        phones = " ".join(PHONES[phone] for phone in speech.phones if PHONES[phone] != SILENCE)
        classes = labels(speech, seconds, pace, len(features), self._states)
        silence = classes // self._states == PHONES.index(SILENCE)
        return Utterance(name, features, classes, phones, silence)


def part_of(text: str) -> str:
    """Returns the subset of a sentence, which depends only on its text."""
    return HELD_OUT.get(hashlib.sha256(text.encode()).digest()[0] % PARTS, "train")


def labels(speech: Speech, seconds: float, pace: float, num_frames: int, num_states: int) -> Int32s:
    """Returns the class of each frame (num_frames,): phone x num_states + state.

    Args:
        speech: the synthesised speech, before speed perturbation.
        seconds: duration after speed perturbation.
        pace: speed factor.
        num_frames: number of frames after speed perturbation.
        num_states: number of states of a phone.
    """
    middles = (np.arange(num_frames) + 0.5) * (seconds / num_frames) * pace * RATE  # in samples of the original speech
    begins = np.array([*speech.begins, max(len(speech.samples), speech.begins[-1] + 1)])
    at = np.clip(np.searchsorted(begins, middles, side="right") - 1, 0, len(speech.phones) - 1)
    state = np.clip((middles - begins[at]) / (begins[at + 1] - begins[at]) * num_states, 0, num_states - 1)
    classes: Int32s = (np.array(speech.phones)[at] * num_states + state.astype(np.int64)).astype(np.int32)
    return classes
