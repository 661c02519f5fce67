"""Tests of alignments from TextGrid and CTM files, and of a TIMIT prepared by Lhotse's recipe."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from lhotse import SupervisionSegment

from ngsgd.data.alignment_files import Segment, open_alignments
from ngsgd.data.corpora import corpus_settings, open_corpus
from ngsgd.data.corpus import Subset, read_info
from ngsgd.data.parts import assemble, prepare_part
from ngsgd.data.phones import PhoneLoop
from ngsgd.errors import ConfigError, DataError, UtteranceError

from ..kaldi.test_fuzz import check_damaged
from ..timit import make_timit, prepare_cuts
from .test_lhotse_cuts import ITEMS, LABELS, corpus, cut_of, read, read_one, sound

pytest.importorskip("praatio", reason="needs praatio to read TextGrid files")

TEXTGRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 1
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 1
            text = "ab"
    item [2]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 1
        intervals: size = 5
"""
TEXTGRID += "".join(
    f'        intervals [{i}]:\n            xmin = {start}\n            xmax = {end}\n            text = "{symbol}"\n'
    for i, (symbol, start, end) in enumerate(
        [("", 0, 0.1), ("a", 0.1, 0.4), ("b", 0.4, 0.6), ("b", 0.6, 0.8), ("", 0.8, 1)], 1
    )
)
CTM = "".join(f"a.wav 1 {start} {duration} {symbol} 0.9\n" for symbol, start, duration in ITEMS[1:])


def unaligned(root: Path):
    """Returns a cut of one second without an alignment."""
    cut = cut_of(sound(root / "a.wav"))
    cut.supervisions[0].alignment = None
    return cut


@pytest.mark.parametrize("kind", ["TextGrid", "ctm"])
def test_alignments_in_files(tmp_path: Path, kind: str) -> None:
    (tmp_path / "ali").mkdir()
    (tmp_path / "ali/a.wav.TextGrid").write_text(TEXTGRID)
    (tmp_path / "ali.ctm").write_text(";; a comment\nbefore A 0 1 a\n\n" + CTM + "z 1 0 1 a\n")
    files = tmp_path / ("ali" if kind == "TextGrid" else "ali.ctm")
    cut = unaligned(tmp_path)
    assert read_one(tmp_path, cut, files=files).labels.tolist() == LABELS
    part = cut.truncate(offset=0.3, duration=0.4)
    assert read_one(tmp_path, part, files=files).labels.tolist() == LABELS[30:70]
    _, dropped = read(corpus(tmp_path, [cut]))
    assert "alignment_files can name files" in dropped["a.wav"]
    cut.supervisions[0].recording_id = cut.supervisions[0].id = "other"
    _, dropped = read(corpus(tmp_path, [cut], files=files))
    assert f"it has no alignment of type phone in its supervisions or in {files}" in dropped["a.wav"]


def test_alignments_of_utterances_within_a_recording(tmp_path: Path) -> None:
    """The times of a supervision's own file count from its start."""
    (tmp_path / "ali.ctm").write_text(CTM.replace("a.wav", "utt"))
    cut = sound(tmp_path / "a.wav", 2.0).to_cut()
    cut.supervisions = [SupervisionSegment("utt", "a.wav", 0.5, 1.0)]
    found = read_one(tmp_path, cut, files=tmp_path / "ali.ctm")
    assert found.labels.tolist() == [0] * 50 + LABELS + [0] * 50
    (trimmed,) = cut.trim_to_supervisions()
    assert read_one(tmp_path, trimmed, files=tmp_path / "ali.ctm").labels.tolist() == LABELS


def test_channels_of_a_ctm_file(tmp_path: Path) -> None:
    (tmp_path / "a.ctm").write_text("r A 0 1 a\nr B 0 1 b\nr A 1 1\ns 7 0 1 c\n")
    ctm = open_alignments(tmp_path / "a.ctm", "phone")
    assert ctm.find("r", 0) == [Segment("a", 0, 1), Segment("", 1, 1)]
    assert ctm.find("r", 1) == [Segment("b", 0, 1)]
    assert ctm.find("s", 0) == [Segment("c", 0, 1)]
    assert ctm.find("r", 5) is ctm.find("t", 0) is None


def test_empty_symbols_may_have_a_class_of_their_own(tmp_path: Path) -> None:
    cut = cut_of(sound(tmp_path / "a.wav"))
    (tmp_path / "table").write_text("sil 0\na 1\nb 2\n<eps> 3\n")
    assert read_one(tmp_path, cut, symbols=tmp_path / "table").labels.tolist() == [3] * 10 + LABELS[10:]
    (tmp_path / "table").write_text("a 1\nsil 0\nb 2\n")
    source = corpus(tmp_path, [cut], symbols=tmp_path / "table")
    assert source.phones == ()  # the first symbol is not the first class
    assert read(source)[0][0].labels.tolist() == [1] * 40 + [2] * 40 + [1] * 20
    assert read(source)[0][0].text == "words"


def test_malformed_alignment_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("none", "a.txt"):
        with pytest.raises(DataError, match=f"{name}: neither a folder"):
            open_alignments(tmp_path / name, "phone")
    with pytest.raises(DataError, match=r"a\.ctm: cannot be read"):
        open_alignments(tmp_path / "a.ctm", "phone")
    (tmp_path / "a.ctm").write_text("r 1 0 x a\n")
    with pytest.raises(UtteranceError, match="'r 1 0 x a' is not a line"):
        open_alignments(tmp_path / "a.ctm", "phone").find("r", 0)
    (tmp_path / "a.ctm").write_text("r" * 100_000)
    with pytest.raises(DataError, match="a line of more than 65536 bytes"):
        open_alignments(tmp_path / "a.ctm", "phone")
    (tmp_path / "a.TextGrid").write_text(TEXTGRID)
    (tmp_path / "b.TextGrid").write_text("no grid")
    (tmp_path / "c.TextGrid").mkdir()
    with pytest.raises(UtteranceError, match=r"no tier state or states among .*words"):
        open_alignments(tmp_path, "state").find("a", 0)
    for name in "bc":
        with pytest.raises(UtteranceError, match="not a TextGrid file"):
            open_alignments(tmp_path, "phone").find(name, 0)
    assert open_alignments(tmp_path, "phone").find("../" + tmp_path.name + "/a", 0) is None
    monkeypatch.setitem(sys.modules, "praatio", None)
    with pytest.raises(UtteranceError, match=r"pip install 'ngsgd\[textgrid\]'"):
        open_alignments(tmp_path, "phone").find("a", 0)


READERS = {
    "a.TextGrid": (TEXTGRID.encode(), lambda path: open_alignments(path.parent, "phone").find("a", 0)),
    "a.ctm": (CTM.encode(), lambda path: open_alignments(path, "phone").find("a.wav", 0)),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("number", [100, pytest.param(3000, marks=pytest.mark.slow)])
def test_damaged_alignments(tmp_path: Path, name: str, number: int) -> None:
    whole, read_file = READERS[name]
    check_damaged(whole, tmp_path / name, read_file, number)


def test_timit_by_its_recipe(tmp_path: Path) -> None:
    """Decodes the phones of manifests that Lhotse's recipe makes, with lilcom_chunky features as icefall makes them."""
    timit = tmp_path
    make_timit(timit / "timit", {"TRAIN": ("FCJF0", "MDAB9"), "TEST": ("FAKS0", "MDAB0")}, sentences=3)
    manifests, settings = prepare_cuts(timit / "timit", timit)
    source = open_corpus(settings | {"num_valid_utterances": 1})
    symbols = source.phones[1:]
    parts = [timit / "parts" / str(k) for k in range(2)]
    for k, part in enumerate(parts):
        prepare_part(source, part, k, 2)
    assemble(parts, timit / "corpus", 0.0)
    info, test = read_info(timit / "corpus"), Subset(timit / "corpus", "test")
    assert info.num_utterances == {"train": 5, "valid": 1, "test": len(manifests["TEST"]["recordings"])}
    assert (info.dim, info.phones) == (80, ("sil", *symbols))
    segments = {s.id: s for s in manifests["TEST"]["supervisions"]}
    loop = PhoneLoop(Subset(timit / "corpus", "train"), info.phones, len(info.class_counts))
    for i, (name, text) in enumerate(zip(test.names, test.texts, strict=True)):
        features, labels = test.utterance(i)
        phones = [item.symbol for item in segments[name.rpartition("-")[0]].alignment["phone"]]
        assert text.split() == [phone for phone in phones if phone not in ("", "sil")]
        assert loop.decode(50.0 * np.eye(len(info.class_counts))[labels], 1.0) == text.split()
        assert len(features) == len(labels)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_array": "pdf", "alignment_files": "a.ctm"}, "alignment_files is only used with alignment_symbols"),
        ({"alignment_symbols": "phones", "num_classes": 5}, "num_classes is only used with label_array"),
    ],
)
def test_settings_that_do_not_match(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        corpus_settings("lhotse", {"train_cuts": "a", "test_cuts": "b"} | settings).check()


def test_byte_order_mark_of_a_ctm_file_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.ctm").write_bytes(b"\xef\xbb\xbfr 1 0.0 0.5 a\nr 1 0.5 0.5 b\nq 1 0 1 c\n")
    files = open_alignments(tmp_path / "a.ctm", "phone")
    assert [s.symbol for s in files.find("r", 0) or ()] == ["a", "b"]
    assert [s.symbol for s in files.find("q", 0) or ()] == ["c"]


def test_cut_with_speech_without_alignment_is_dropped(tmp_path: Path) -> None:
    """Its frames would be silence."""
    cut = cut_of(sound(tmp_path / "a.wav"))
    (whole,) = cut.supervisions
    second = SupervisionSegment("s2", whole.recording_id, whole.duration, 0.1, text="more")
    for text, is_dropped in (("more", True), (None, False)):
        second.text = text
        cut.supervisions = [whole, second]
        _, dropped = read(corpus(tmp_path, [cut]))
        assert (list(dropped) == [cut.id]) == is_dropped, dropped
        if is_dropped:
            assert dropped[cut.id].startswith("it has no alignment")
