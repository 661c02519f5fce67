"""Tests of word errors, their tables, and the choice of language-model weight and word insertion penalty."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from ngsgd.data.corpus import Utterance, write_subset
from ngsgd.errors import DataError
from ngsgd.training.decoding import (
    OPERATIONS,
    WordErrors,
    best_point,
    read_transcripts,
    score_points,
    word_errors,
    write_alignments,
)
from ngsgd.training.settings import Settings


def test_word_errors() -> None:
    references = [["a", "b", "c"], ["d"], []]
    hypotheses = [["a", "x", "c", "d"], [], ["e"]]
    found = word_errors(references, hypotheses)
    assert found == WordErrors(words=4, insertions=2, deletions=1, substitutions=1)
    assert (found.errors, found.rate) == (4, 1.0)
    with pytest.raises(DataError, match="the references have no words"):
        word_errors([[], []], [["a"], []])


def row(weight: int, valid: float, test: float, penalty: float = 0.0) -> dict:
    return {
        "lmwt": weight,
        "word_ins_penalty": penalty,
        "valid": {"word_error_rate": valid},
        "test": {"word_error_rate": test},
    }


def test_point_is_chosen_on_validation_utterances() -> None:
    rows = [row(7, 0.3, 0.0), row(8, 0.1, 0.5), row(9, 0.1, 0.4), row(10, 0.1, 0.6), row(11, 0.2, 0.1)]
    assert best_point(rows) == 2  # the middle one of the best weights
    assert best_point(rows[:3]) == 2
    assert best_point(rows[:1]) == 0
    # In a tie the lower penalty counts.
    assert best_point([*rows, row(7, 0.1, 0.0, 0.5)]) == 2
    assert best_point([*rows, row(7, 0.05, 0.9, 0.5)]) == 5


@pytest.fixture
def decoded(tmp_path: Path, make_settings) -> tuple[Settings, Path, Path]:
    """Settings of two points, a corpus of three test utterances, and their decoded words."""
    settings = make_settings(min_lmwt=7, max_lmwt=8, word_ins_penalties=[0.0], unscored_words=["<UNK>", "[noise]"])
    texts = {"u1": "a b\u00a0c d", "u2": "a [noise]", "u3": "d"}
    for subset in ("valid", "test"):
        utterances = (
            Utterance(n, np.zeros((2, 1), np.float32), None, t, speaker=f"s{n > 'u2'}") for n, t in texts.items()
        )
        write_subset(tmp_path, subset, utterances, 1)
    words = {
        "u1": [["a", "x", "d", "e"], ["a", "<UNK>", "b\u00a0c", "d"]],
        "u2": [["a"], ["[noise]"]],
        "u3": [["d"], []],
    }
    results = {name: [(w, name != "u3") for w in both] for name, both in words.items()}
    (tmp_path / "words.json").write_text(json.dumps({"valid": results, "test": results}))
    return settings, tmp_path, tmp_path / "words.json"


def test_unscored_words_are_removed_and_spaces_of_unicode_kept(decoded) -> None:
    settings, data, words = decoded
    transcripts = read_transcripts(settings, data, [words])
    assert transcripts["test"].references == [["a", "b\u00a0c", "d"], ["a"], ["d"]]
    assert transcripts["test"].hypotheses[1] == [["a", "b\u00a0c", "d"], [], []]
    rows = score_points(settings, transcripts)
    assert [row["test"]["word_error_rate"] for row in rows] == [2 / 5, 2 / 5]
    assert [row["test"]["incomplete"] for row in rows] == [1, 1]
    assert [row["test"]["deletions"] for row in rows] == [0, 2]


def test_tables_of_utterances_and_speakers(decoded) -> None:
    settings, data, words = decoded
    test = read_transcripts(settings, data, [words])["test"]
    write_alignments(test, 0, data / "per_utt.tsv", data / "per_spk.tsv")
    utterances = [line.split("\t") for line in (data / "per_utt.tsv").read_text().splitlines()]
    assert utterances == [
        ["utterance", "speaker", "reference", "hypothesis", "operations", *OPERATIONS.values()],
        ["u1", "sFalse", "a b\u00a0c d ***", "a x d e", "C S C I", "2", "1", "1", "0"],
        ["u2", "sFalse", "a", "a", "C", "1", "0", "0", "0"],
        ["u3", "sTrue", "d", "d", "C", "1", "0", "0", "0"],
    ]
    speakers = [line.split("\t") for line in (data / "per_spk.tsv").read_text().splitlines()]
    assert speakers[1:] == [
        ["sFalse", "2", "4", "3", "1", "1", "0", "0.5"],
        ["sTrue", "1", "1", "1", "0", "0", "0", "0.0"],
    ]


def test_an_utterance_that_is_not_decoded_is_an_error(decoded) -> None:
    settings, data, words = decoded
    results = json.loads(words.read_text())
    del results["test"]["u2"]
    words.write_text(json.dumps(results))
    with pytest.raises(DataError, match="u2 is not decoded"):
        read_transcripts(settings, data, [words])


def test_speaker_without_words_has_a_row(decoded, make_settings) -> None:
    settings, data, words = decoded
    settings = dataclasses.replace(settings, unscored_words=["d"])
    test = read_transcripts(settings, data, [words])["test"]
    write_alignments(
        test._replace(hypotheses=[[["a"], ["a"], ["x", "y"]]]), 0, data / "per_utt.tsv", data / "per_spk.tsv"
    )
    assert (data / "per_spk.tsv").read_text().splitlines()[-1].split("\t") == [
        "sTrue",
        "1",
        "0",
        "0",
        "0",
        "2",
        "0",
        "",
    ]
    settings = dataclasses.replace(settings, unscored_words=["a", "b\u00a0c", "d", "[noise]"])
    with pytest.raises(DataError, match=r"the valid subset have no words, or all are unscored_words \(a, b"):
        score_points(settings, read_transcripts(settings, data, [words]))
