import itertools
from pathlib import Path

import numpy as np
import pytest

from ngsgd.data.corpus import Subset, Utterance, write_subset
from ngsgd.data.phones import PhoneLoop, collapse

PHONES = ("_", "a", "b")
STATES = 2


def loop(directory: Path, *labels: list[int]) -> PhoneLoop:
    utterances = [
        Utterance(f"u{i}", np.zeros((len(classes), 1), np.float32), np.array(classes, np.int32))
        for i, classes in enumerate(labels)
    ]
    write_subset(directory, "train", utterances, 1)
    return PhoneLoop(Subset(directory, "train"), PHONES, STATES * len(PHONES))


def scores(path: list[int], strength: float = 5.0) -> np.ndarray:
    log_likelihoods = np.zeros((len(path), STATES * len(PHONES)))
    log_likelihoods[np.arange(len(path)), path] = strength
    return log_likelihoods


def test_phones_are_decoded(tmp_path: Path) -> None:
    found = loop(tmp_path, [0, 1, 2, 2, 3, 4, 5, 0, 1]).decode(scores([0, 1, 4, 4, 5, 2, 3, 2, 3, 0]), 1.0)
    assert found == ["b", "a", "a"]  # although no training label has b after silence: any phone may follow any


def test_decoding_finds_the_best_path(tmp_path: Path) -> None:
    phone_loop = loop(tmp_path, [2, 2, 3, 3, 4, 5, 2, 3, 0, 1, 1, 0, 4, 5])
    rng = np.random.default_rng(0)
    with np.errstate(invalid="ignore"):
        for _ in range(5):
            scaled = rng.normal(size=(5, 6)) * 3.0
            totals = {
                path: scaled[np.arange(5), path].sum()
                + sum(phone_loop._log_transitions[after, before] for before, after in itertools.pairwise(path))
                for path in itertools.product(range(6), repeat=5)
            }
            assert phone_loop.decode(scaled / 0.5, 0.5) == collapse(max(totals, key=totals.__getitem__), PHONES, STATES)


def test_transitions_are_weighted_against_likelihoods(tmp_path: Path) -> None:
    phone_loop = loop(tmp_path, [2] * 50 + [3] * 50)
    path = [2, 2, 3, 3, 2, 3, 3]
    assert phone_loop.decode(scores(path), 2.0) == ["a", "a"]
    assert phone_loop.decode(scores(path), 0.1) == ["a"]


def test_no_transition_is_counted_between_utterances(tmp_path: Path) -> None:
    phone_loop = loop(tmp_path, [2, 3], [3, 3], [2, 3])
    # One count of 3 -> 3, and one of each of the three phones that may follow.
    assert phone_loop._log_transitions[3, 3] == pytest.approx(np.log(1 / 4))
    assert phone_loop._log_transitions[2, 3] == pytest.approx(np.log(1 / 4))


def test_labels_are_counted_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    labels = [rng.integers(6, size=n).tolist() for n in (5, 1, 7, 3, 9)]
    expected = loop(tmp_path, *labels)
    for block in (1, 2, 3, 5, 8):
        monkeypatch.setattr("ngsgd.data.phones.BLOCK", block)
        assert np.array_equal(loop(tmp_path, *labels)._log_transitions, expected._log_transitions), block


def test_phone_starts_where_the_state_sequence_restarts() -> None:
    assert collapse([0, 1, 2, 2, 3, 2, 3, 5, 4, 0], PHONES, STATES) == ["a", "a", "b", "b"]
