from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from ngsgd.data.alignment import decode_word, equal_segments, realign_labels, train_chain, viterbi
from ngsgd.data.corpora.digits import WORDS, DigitsCorpus, read_digits, split
from ngsgd.data.corpus import SUBSETS, Subset, WordModel, read_info
from ngsgd.errors import DataError

from ..experiment import prepare


def do_prepare(directory: Path, path: Path, num_test: int = 30, num_parts: int = 1):
    return prepare(DigitsCorpus(path, 3, 30, num_test), directory, num_parts)


def test_corpus_is_complete_and_reproducible(few_digits: Path, tmp_path: Path) -> None:
    info = do_prepare(tmp_path / "a", few_digits)
    assert info == read_info(tmp_path / "a") == do_prepare(tmp_path / "b", few_digits, num_parts=4)
    assert info.num_utterances == {"train": 240, "valid": 30, "test": 30}
    names = [name for subset in SUBSETS for name in Subset(tmp_path / "a", subset).names]
    assert len(set(names)) == 300
    for subset in SUBSETS:
        assert sorted(Subset(tmp_path / "a", subset).texts) == sorted(WORDS * (24 if subset == "train" else 3))
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_labels_pass_through_the_states_of_their_word_in_order(few_digits: Path, tmp_path: Path) -> None:
    info = do_prepare(tmp_path, few_digits)
    classes = {model.word: model.classes for model in info.words}
    for subset in SUBSETS:
        utterances = Subset(tmp_path, subset)
        for i, word in enumerate(utterances.texts):
            _, labels = utterances.utterance(i)
            assert tuple(key for key, _ in itertools.groupby(labels.tolist())) == classes[word]
    assert sum(info.class_counts) == info.num_frames["train"]


def test_alignment_does_not_use_held_out_recordings(few_digits: Path, tmp_path: Path) -> None:
    """Changed test recordings leave the labels of the training recordings unchanged."""
    do_prepare(tmp_path / "a", few_digits)
    test = {r.name for r in split(read_digits(few_digits), 30, 30)["test"]}
    with np.load(few_digits) as arrays:
        X, y, lengths = (arrays[name].copy() for name in ("X", "y", "lengths"))
    ends = np.cumsum(lengths)
    for i, r in enumerate(read_digits(few_digits)):
        if r.name in test:
            X[ends[i] - lengths[i] : ends[i]] *= -3.0
    np.savez(tmp_path / "other.npz", X=X, y=y, lengths=lengths)
    do_prepare(tmp_path / "b", tmp_path / "other.npz")
    first, second = ((tmp_path / k / "train.labels.npy").read_bytes() for k in "ab")
    # Even the variance floor is the same, since it is computed from training frames only.
    assert first == second


def test_viterbi_finds_the_best_path() -> None:
    rng = np.random.default_rng(0)
    scores, stay, leave = rng.normal(size=(7, 3)), np.log([0.9, 0.5, 0.3]), np.log([0.1, 0.5, 0.7])

    def score(path: tuple[int, ...]) -> float:
        steps = sum(stay[a] if a == b else leave[a] for a, b in itertools.pairwise(path))
        return sum(scores[t, s] for t, s in enumerate(path)) + steps + leave[2]

    monotone = [
        path for path in itertools.product(range(3), repeat=7)
        if path[0] == 0 and path[-1] == 2 and all(b - a in (0, 1) for a, b in itertools.pairwise(path))
    ]  # fmt: skip
    best = max(monotone, key=score)
    found, states = viterbi(scores, stay, leave)
    assert tuple(states.tolist()) == best
    assert found == pytest.approx(score(best))


def test_training_finds_state_boundaries() -> None:
    """The two states differ strongly and are of unequal length, unlike the initial equal segments."""
    rng = np.random.default_rng(0)
    lengths = [(3, 12), (4, 9), (2, 15)]
    features = [
        np.concatenate((rng.normal(0, 0.3, (a, 2)), rng.normal(5, 0.3, (b, 2)))).astype(np.float32) for a, b in lengths
    ]
    chain = train_chain(features, 2, np.full(2, 1e-3))
    for (a, b), states in zip(lengths, chain.align(features), strict=True):
        assert states.tolist() == [0] * a + [1] * b
    assert np.exp(chain.log_leave[0]) == pytest.approx(3 / 9)
    assert equal_segments(7, 3).tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_most_likely_word_is_decoded() -> None:
    half = (np.log(0.5),) * 2
    words = [
        WordModel("no", (0, 1), half, half),
        WordModel("on", (1, 0), half, half),
        WordModel("long", (2,) * 9, half, half),
    ]
    frames = np.log(np.array([[0.8, 0.1, 0.1]] * 3 + [[0.1, 0.8, 0.1]] * 2))
    assert decode_word(frames, words) == "no"
    assert decode_word(frames[::-1], words) == "on"
    assert decode_word(frames[:1], words) == ""


def write_digits(few_digits: Path, path: Path, **changes) -> Path:
    with np.load(few_digits) as arrays:
        np.savez(path, **({name: arrays[name] for name in ("X", "y", "lengths")} | changes))
    return path


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"X": np.zeros((5, 13))}, "X has 5"),
        ({"y": np.full(300, 11)}, "no such digit"),
        ({"y": np.array(["a"] * 300)}, "y <U1"),
        ({"X": np.zeros((0, 13)), "y": np.zeros(0, int), "lengths": np.zeros(0, int)}, "empty"),
        ({"lengths": np.full(300, -1)}, "lengths add up"),
        ({"X": np.ones((5338, 13))}, "feature 0 is the same in all training frames"),
    ],
)
def test_malformed_arrays_are_refused(few_digits: Path, tmp_path: Path, changes, text: str) -> None:
    with pytest.raises(DataError, match=text):
        do_prepare(tmp_path / "out", write_digits(few_digits, tmp_path / "bad.npz", **changes))
    assert not (tmp_path / "out").exists()


def test_files_without_digits_are_refused(few_digits: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.npz"
    with pytest.raises(DataError, match="no such file"):
        read_digits(bad)
    bad.write_bytes(few_digits.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"bad\.npz: not a file of spoken digits"):
        read_digits(bad)
    np.save(bad.with_suffix(".npy"), np.zeros(3))
    with pytest.raises(DataError, match="not a file of spoken digits"):
        read_digits(bad.with_suffix(".npy"))
    np.savez(bad, X=np.array([print], dtype=object), y=[1], lengths=[1])
    with pytest.raises(DataError, match="not a file of spoken digits"):
        read_digits(bad)


def test_bad_recording_is_dropped(few_digits: Path, tmp_path: Path) -> None:
    with np.load(few_digits) as arrays:
        X = arrays["X"].copy()
    X[0, 0] = np.nan
    info = do_prepare(tmp_path / "out", write_digits(few_digits, tmp_path / "one.npz", X=X))
    assert len(info.dropped) == 1
    assert sum(info.num_utterances.values()) == 299
    assert do_prepare(tmp_path / "parts", tmp_path / "one.npz", num_parts=3).dropped == info.dropped
    X[:200, 0] = np.nan
    with pytest.raises(DataError, match="more than max_bad_utterance_share"):
        do_prepare(tmp_path / "none", write_digits(few_digits, tmp_path / "many.npz", X=X))
    with pytest.raises(DataError, match="held out"):
        do_prepare(tmp_path / "none", few_digits, num_test=290)


def test_realignment_keeps_the_sequence_and_follows_the_scores() -> None:
    labels = np.array([4, 4, 4, 1, 1, 4, 4], np.int32)
    scores = np.full((7, 5), -9.0)
    for t, best in enumerate([4, 1, 1, 1, 1, 1, 4]):
        scores[t, best] = 0.0
    assert realign_labels(labels, scores).tolist() == [4, 1, 1, 1, 1, 1, 4]
    scores[:, 1] = -99.0  # each state keeps at least one frame
    assert realign_labels(labels, scores).tolist().count(1) == 1
    assert realign_labels(labels[:1], scores[:1]).tolist() == [4]
