"""Tests of word errors and of the choice of the language-model weight."""

from __future__ import annotations

import pytest

from ngsgd.errors import DataError
from ngsgd.training.decoding import WordErrors, best_lm_weight, word_errors


def test_word_errors() -> None:
    references = [["a", "b", "c"], ["d"], []]
    hypotheses = [["a", "x", "c", "d"], [], ["e"]]
    found = word_errors(references, hypotheses)
    assert found == WordErrors(words=4, insertions=2, deletions=1, substitutions=1)
    assert (found.errors, found.rate) == (4, 1.0)
    with pytest.raises(DataError, match="the references have no words"):
        word_errors([[], []], [["a"], []])


def row(weight: int, valid: float, test: float) -> dict:
    return {"lmwt": weight, "valid": {"word_error_rate": valid}, "test": {"word_error_rate": test}}


def test_lm_weight_is_chosen_on_validation_utterances() -> None:
    rows = [row(7, 0.3, 0.0), row(8, 0.1, 0.5), row(9, 0.1, 0.4), row(10, 0.1, 0.6), row(11, 0.2, 0.1)]
    assert best_lm_weight(rows)["lmwt"] == 9  # the middle one of the best weights
    assert best_lm_weight(rows[:3])["lmwt"] == 9
    assert best_lm_weight(rows[:1])["lmwt"] == 7
