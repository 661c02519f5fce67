from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from ngsgd.data.corpus import UNALIGNED, Subset, Utterance, UtteranceFilter, read_info, write_subset
from ngsgd.errors import DataError


def utterance(name: str, frames: int = 5, dim: int = 2, **changes) -> Utterance:
    fields = {"features": np.ones((frames, dim), np.float32), "labels": np.zeros(frames, np.int32)} | changes
    return Utterance(name, **fields)


BAD = {
    "no frames": utterance("bad", frames=0),
    "labels": utterance("bad", labels=np.zeros(4, np.int32)),
    "shape": utterance("bad", dim=3),
    "surrogate": utterance("bad", text="a \ud800 b"),
    "finite": utterance("bad", features=np.array([[1, np.nan]] * 5, np.float32)),
}


@pytest.mark.parametrize("reason", BAD)
def test_bad_utterance_is_dropped_with_a_warning(reason: str, caplog: pytest.LogCaptureFixture) -> None:
    utterance_filter = UtteranceFilter(dim=2, num_classes=3)
    good = [utterance(f"good{i}") for i in range(150)]
    with caplog.at_level(logging.WARNING):
        kept = list(utterance_filter.accept([*good, BAD[reason]], count_classes=True))
    utterance_filter.check(150, 0.01, 0.0)
    assert len(kept) == 150
    assert reason in utterance_filter.dropped["bad"]
    assert "utterance bad dropped" in caplog.text
    assert utterance_filter.class_counts.tolist() == [750, 0, 0]


def test_too_many_bad_utterances_are_an_error() -> None:
    utterance_filter = UtteranceFilter(dim=2, num_classes=3)
    for n in range(5):
        utterance_filter.drop(f"bad{n}", "it is too loud")
    utterance_filter.check(95, 0.05, 0.0)
    message = (
        r"5 of 99 utterances are bad, more than max_bad_utterance_share = 0\.05; the first are bad0: it is too loud; "
    )
    with pytest.raises(DataError, match=message + "bad1: it is too loud; bad2: it is too loud$"):
        utterance_filter.check(94, 0.05, 0.0)


def test_utterances_without_alignment_have_a_limit_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    utterance_filter = UtteranceFilter(dim=2, num_classes=3)
    for n in range(20):
        utterance_filter.drop(f"u{n}", UNALIGNED)
    utterance_filter.check(80, 0.0, 0.2)
    assert "20 of 100 utterances have no alignment; the first are u0; u1; u2" in caplog.text
    with pytest.raises(
        DataError, match=r"20 of 100 .* more than max_unaligned_utterance_share = 0\.1; the first are u0"
    ):
        utterance_filter.check(80, 0.0, 0.1)


@pytest.mark.parametrize("label", [-1, 3])
def test_utterance_with_a_label_out_of_range_is_dropped(label: int) -> None:
    wrong = utterance("u7", labels=np.array([0, 1, label, 2, 0], np.int32))
    utterance_filter = UtteranceFilter(2, 3)
    assert list(utterance_filter.accept([wrong])) == []
    assert f"label {label} is outside 0 - 2" in utterance_filter.dropped["u7"]


def test_empty_corpus_is_refused() -> None:
    with pytest.raises(DataError, match="empty"):
        UtteranceFilter(2, 3).check(0, 0.01, 0.5)


def test_subset_is_read_as_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    utterances = [
        Utterance(f"u{n}", rng.normal(size=(n, 2)).astype(np.float32), rng.integers(3, size=n, dtype=np.int32), "yes")
        for n in (3, 7, 200)
    ]
    written = write_subset(tmp_path, "train", iter(utterances), 2)
    assert (written.utterances, written.frames) == (3, 210)
    subset = Subset(tmp_path, "train")
    assert isinstance(subset.features, np.memmap)
    for i, u in enumerate(utterances):
        features, labels = subset.utterance(i)
        np.testing.assert_array_equal(features, u.features)
        np.testing.assert_array_equal(labels, u.labels)
    assert subset.texts == ["yes"] * 3
    other = write_subset(tmp_path, "valid", iter(utterances[:2]), 2)
    assert other.sha256 != written.sha256


def test_long_names_and_transcripts_are_read_as_written(tmp_path: Path) -> None:
    long = "x" * 200_000
    write_subset(tmp_path, "train", [utterance(long, text=long, speaker=long)], 2)
    subset = Subset(tmp_path, "train")
    assert subset.names == subset.texts == subset.speakers == [long]


def test_name_with_a_lone_surrogate_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    utterance_filter = UtteranceFilter(2, 3)
    assert list(utterance_filter.accept([utterance("a\udcff")])) == []
    assert list(utterance_filter.dropped) == ["a\\udcff"]
    caplog.text.encode("utf-8")


def test_interrupted_subset_leaves_no_file(tmp_path: Path) -> None:
    def broken():
        yield utterance("a")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_subset(tmp_path, "train", broken(), 2)
    assert list(tmp_path.iterdir()) == []


def test_inconsistent_files_are_refused(tmp_path: Path) -> None:
    write_subset(tmp_path, "train", [utterance("a"), utterance("b")], 2)
    table = tmp_path / "train.utterances.tsv"
    table.write_text(table.read_text().replace("b\t5", "b\t6"))
    with pytest.raises(DataError, match="lists 11 frames"):
        Subset(tmp_path, "train")
    (tmp_path / "corpus.json").write_text("{}")
    with pytest.raises(DataError, match=r"corpus\.json"):
        read_info(tmp_path)
