from pathlib import Path

import numpy as np
import pytest

from ngsgd.data.corpora.synthetic import SAMPLING_RATE, VARIANTS, SyntheticCorpus, labels, part_of
from ngsgd.data.corpus import SUBSETS, Subset, read_info
from ngsgd.data.parts import assemble, prepare_part
from ngsgd.data.synthetic.espeak import PHONES, RATE, Speech, Voice, canonical, say
from ngsgd.data.synthetic.rooms import add_noise, resample, reverberate
from ngsgd.data.synthetic.sentences import sentence
from ngsgd.errors import ConfigError, DataError

VOICE = Voice("en-us+f3", 170, 50, 50)


def corpus(**changes: object) -> SyntheticCorpus:
    fields = {"hours": 0.02, "num_valid_utterances": 5, "num_test_utterances": 7, "extractor": "kaldi-mfcc"}
    return SyntheticCorpus(**(fields | {"root": Path(), "states_per_symbol": 3, "seed": 0} | changes))


def refuse(name: str, reason: str) -> None:
    raise AssertionError(f"{name}: {reason}")


def test_speech_does_not_depend_on_earlier_calls() -> None:
    text = "Slowly, the fox went across the frozen river."
    first = {name: say(text, Voice(name, 170, 50, 50)) for name in ("en-us+f3", "en-gb-x-rp+m8", "en-us+klatt4")}
    for name, speech in first.items():
        say("Something else that is longer, and louder!", Voice("en-gb-scotland+Alex", 220, 30, 90))
        again = say(text, Voice(name, 170, 50, 50))
        assert np.array_equal(again.samples, speech.samples), name
        assert again[1:] == speech[1:]


def test_phones_have_their_start_times() -> None:
    speech = say("She sees.", VOICE)
    symbols = [PHONES[phone] for phone in speech.phones]
    assert [phone for phone in symbols if phone != "_"] == ["S", "i:", "s", "i:", "z"]
    assert all(a < b for a, b in zip(speech.begins, speech.begins[1:], strict=False))
    # Fricatives have more zero crossings than vowels.
    pieces = np.split(speech.samples, speech.begins)[1:]
    crossings = {
        phone: np.mean(np.diff(np.sign(piece)) != 0) for phone, piece in zip(symbols, pieces, strict=True) if len(piece)
    }
    assert crossings["s"] > 2 * crossings["i:"]


@pytest.mark.parametrize(
    ("symbol", "phone"),
    [("'eI", "eI"), (",i@3", "i@"), ("t#", "t"), ("3:", "3:"), ("3", "3"), ("_:", "_"), ("I2", "I"), (";", ";")],
)
def test_canonical_phones_have_no_stress_or_variant(symbol: str, phone: str) -> None:
    assert canonical(symbol) == phone


def test_unknown_voice_is_refused() -> None:
    with pytest.raises(DataError, match="no voice 'xx-nowhere'"):
        say("Hello.", Voice("xx-nowhere", 170, 50, 50))


def test_corpus_does_not_depend_on_the_number_of_parts(tmp_path: Path) -> None:
    for num_parts in (1, 3):
        parts = [tmp_path / f"{part}of{num_parts}" for part in range(num_parts)]
        for part in reversed(range(num_parts)):  # the order of the parts does not matter
            prepare_part(corpus(), parts[part], part, num_parts)
        assemble(parts, tmp_path / f"all{num_parts}", 0.0)
    one, three = (read_info(tmp_path / f"all{n}") for n in (1, 3))
    assert one == three
    assert one.num_utterances == {"train": 28, "valid": 5, "test": 7}
    assert one.phones == PHONES
    assert len(one.class_counts) == 3 * len(PHONES)
    other = tmp_path / "other"
    prepare_part(corpus(seed=1), other, 0, 1)
    assert read_info(other).sha256["train"] != one.sha256["train"]


def test_sentences_and_voices_of_the_test_set_are_held_out() -> None:
    rng = np.random.default_rng(0)
    for subset in SUBSETS:
        assert part_of(sentence(rng, lambda text, subset=subset: part_of(text) == subset)) == subset
    assert not set(VARIANTS["train"]) & set(VARIANTS["test"])


def test_labels_divide_phones_into_equal_states() -> None:
    # 0.1 s of phone 3 and 0.2 s of phone 5, at the original speed and at twice the speed.
    speech = Speech(np.zeros(3 * RATE // 10, np.float32), [3, 5], [0, RATE // 10])
    assert labels(speech, 0.3, 1.0, 6, 2).tolist() == [6, 7, 10, 10, 11, 11]
    assert labels(speech, 0.15, 2.0, 6, 2).tolist() == [6, 7, 10, 10, 11, 11]
    assert labels(speech, 0.3, 1.0, 3, 3).tolist() == [10, 15, 17]


def test_labels_are_aligned_with_the_features(tmp_path: Path) -> None:
    """Labels explain more of the variance of the features at their own frames than shifted by some frames."""
    prepare_part(corpus(hours=0.1), tmp_path, 0, 1)
    train = Subset(tmp_path, "train")
    features, classes = np.array(train.features), np.array(train.labels) // 3

    def explained(shift: int) -> float:
        x, y = features[50 + shift : len(features) - 50 + shift], classes[50:-50]
        sums = np.zeros((len(PHONES), x.shape[1]))
        np.add.at(sums, y, x)
        number = np.maximum(np.bincount(y, minlength=len(PHONES)), 1)[:, None]
        return float((np.square(sums) / number).sum() / np.square(x).sum())

    by_shift = {shift: explained(shift) for shift in (-6, -3, -1, 0, 1, 3, 6)}
    assert max(by_shift, key=by_shift.__getitem__) in (-1, 0, 1), by_shift


def test_speed_changes_length_and_pitch() -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE).astype(np.float32)
    for pace in (0.9, 1.0, 1.1):
        resampled = resample(tone, round(RATE * pace), SAMPLING_RATE)
        assert len(resampled) == pytest.approx(SAMPLING_RATE / pace, abs=2)
        spectrum = np.abs(np.fft.rfft(resampled))
        assert spectrum.argmax() * SAMPLING_RATE / len(resampled) == pytest.approx(440 * pace, rel=0.01)


def test_reverberation_without_delay_and_noise_at_the_given_snr() -> None:
    rng = np.random.default_rng(0)
    click = np.zeros(4000, np.float32)
    click[1000] = 1.0
    wet = reverberate(click, SAMPLING_RATE, 0.3, 0.2, rng)
    assert np.abs(wet[:1000]).max() < 1e-5
    assert wet.argmax() == 1000
    assert np.square(wet[1001:]).sum() == pytest.approx(0.2, rel=0.2)
    tone = np.sin(np.arange(16000)).astype(np.float32)
    noise = add_noise(tone, 1.0, 10.0, rng) - tone
    assert np.square(tone).sum() / np.square(noise).sum() == pytest.approx(10.0, rel=1e-3)
    spectrum = np.square(np.abs(np.fft.rfft(noise)))
    assert spectrum[10:100].mean() > 20 * spectrum[1000:].mean()


def test_unknown_feature_extractor_is_refused() -> None:
    with pytest.raises(ConfigError, match="feature_extractor"):
        corpus(extractor="nothing.yaml")
    assert corpus(extractor="kaldi-fbank").dim == 80
    list(corpus().read("valid", 0, 1, refuse))
