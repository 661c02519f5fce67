"""Tests of cuts as recipes make them: resampled, padded or mixed, and from files of many kinds."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import lhotse
import lhotse.serialization
import numpy as np
import pytest
import soundfile
from lhotse import CutSet, LilcomChunkyWriter, NumpyHdf5Writer, Recording, SupervisionSegment
from lhotse.cut import MixedCut, MonoCut
from lhotse.supervision import AlignmentItem

from ngsgd.data.corpora.lhotse import LabelOptions, LhotseCorpus
from ngsgd.data.corpus import Utterance
from ngsgd.data.lhotse_items import Items
from ngsgd.data.lhotse_manifests import Manifests
from ngsgd.errors import DataError
from ngsgd.kaldi.tables import Locations

RATE = 16000
RNG = np.random.default_rng(0)
ITEMS = [("", 0.0, 0.1), ("a", 0.1, 0.3), ("b", 0.4, 0.2), ("b", 0.6, 0.2)]
FBANK = lhotse.Fbank(lhotse.FbankConfig(sampling_rate=RATE))


def sound(path: Path, seconds: float = 1.0, **options: str) -> Recording:
    soundfile.write(path, 0.1 * RNG.normal(size=round(seconds * RATE)), RATE, **options)
    number = soundfile.info(path).frames
    source = lhotse.AudioSource("file", [0], str(path))
    return Recording(path.name, [source], RATE, number, number / RATE)


def cut_of(recording: Recording, **options: object) -> MonoCut:
    alignment = {"phone": [AlignmentItem(*item) for item in ITEMS]}
    segment = SupervisionSegment(
        recording.id, recording.id, 0.0, recording.duration, text="words", alignment=alignment
    )  # fmt: skip
    return MonoCut(recording.id, 0.0, recording.duration, 0, [segment], recording=recording, **options)


def corpus(root: Path, cuts: list[lhotse.cut.Cut], **options: object) -> LhotseCorpus:
    """Writes manifests with these test cuts and opens them."""
    sound(root / "valid.wav")
    train = [cut_of(sound(root / "train.wav")).with_id(name) for name in ("one", "two")]
    for side, own in (("train", train), ("test", cuts)):
        CutSet.from_cuts(own).to_file(root / f"{side}.jsonl")
    if "array" not in options:
        (root / "symbols").write_text("sil 0\na 1\nb 2\n")
        options = {"symbols": root / "symbols"} | options
    defaults = {"array": None, "alignment": "phone", "symbols": None, "states_per_symbol": 1}
    sides = (Manifests(root / f"{side}.jsonl", None, None) for side in ("train", "test"))
    return LhotseCorpus(*sides, Locations(root), "kaldi-fbank", LabelOptions(**defaults | options), None, 1)


def read(source: LhotseCorpus, subset: str = "test") -> tuple[list[Utterance], dict[str, str]]:
    dropped: dict[str, str] = {}
    return list(source.read(subset, 0, 1, dropped.__setitem__)), dropped


def read_one(root: Path, cut: lhotse.cut.Cut, **options: object) -> Utterance:
    (utterance,), dropped = read(corpus(root, [cut], **options))
    assert not dropped
    return utterance


LABELS = [0] * 10 + [1] * 30 + [2] * 40 + [0] * 20

FORMATS = {
    "a.sph": {"format": "NIST"},
    "mu-law.SPH": {"format": "NIST", "subtype": "ULAW"},
    "a.opus": {"format": "OGG", "subtype": "OPUS"},
    "a.WAV": {"format": "WAV"},
    "a.Flac": {"format": "FLAC"},
}


@pytest.mark.parametrize("name", FORMATS)
def test_audio_formats(tmp_path: Path, name: str) -> None:
    recording = sound(tmp_path / name, **FORMATS[name])
    utterance = read_one(tmp_path, cut_of(recording))
    samples, _ = soundfile.read(tmp_path / name, dtype="float32")
    np.testing.assert_allclose(utterance.features, FBANK.extract(samples, RATE), atol=1e-4)
    assert utterance.labels.tolist() == LABELS
    assert utterance.text == "a b"  # one state for each phone cannot tell two phones b from one


def test_shortened_sphere_files_are_dropped(tmp_path: Path) -> None:
    recording = sound(tmp_path / "a.sph", format="NIST")
    head, samples = (data := (tmp_path / "a.sph").read_bytes())[:1024], data[1024:]
    coding = b"sample_coding -s26 pcm,embedded-shorten-v2.00\nend_head"
    (tmp_path / "a.sph").write_bytes(head.replace(b"end_head", coding)[:1024] + samples)
    _, dropped = read(corpus(tmp_path, [cut_of(recording)]))
    assert "compressed by shorten; unpack it with sph2pipe" in dropped["a.sph"]


def test_pipes_in_the_place_of_files_are_dropped(tmp_path: Path) -> None:
    """Reading from a named pipe would not end."""
    recording = sound(tmp_path / "a.wav")
    (tmp_path / "a.wav").unlink()
    os.mkfifo(tmp_path / "a.wav")
    _, dropped = read(corpus(tmp_path, [cut_of(recording)]))
    assert "not a file" in dropped["a.wav"]


def test_resampled_recordings(tmp_path: Path) -> None:
    recording = sound(tmp_path / "a.wav")
    cut = cut_of(recording.resample(8000))
    utterance = read_one(tmp_path, cut)
    assert utterance.labels.tolist() == LABELS
    expected = lhotse.Fbank(lhotse.FbankConfig(sampling_rate=8000)).extract(cut.load_audio(), 8000)
    np.testing.assert_allclose(utterance.features, expected, atol=1e-4)


def test_padding_is_removed(tmp_path: Path) -> None:
    cut = cut_of(sound(tmp_path / "a.wav"))
    expected = read_one(tmp_path, cut)
    for direction in ("left", "right", "both"):
        found = read_one(tmp_path, cut.pad(3.0, direction=direction, preserve_id=True))
        np.testing.assert_array_equal(found.features, expected.features)
        assert (found.labels.tolist(), found.text) == (LABELS, "a b")


def test_noise_is_mixed_in(tmp_path: Path) -> None:
    cut = cut_of(sound(tmp_path / "a.wav"))
    noise = sound(tmp_path / "noise.wav", 2.0).to_cut()
    mixed = cut.mix(noise, offset_other_by=0.2, snr=10, preserve_id="left").pad(3.0, preserve_id=True)
    assert isinstance(mixed, MixedCut)
    found = read_one(tmp_path, mixed)
    assert found.labels.tolist() == LABELS
    expected = FBANK.extract(mixed.truncate(duration=1.0).load_audio(), RATE)
    np.testing.assert_allclose(found.features, expected, atol=1e-3)
    assert not np.allclose(found.features[50:], read_one(tmp_path, cut).features[50:], atol=0.1)
    _, dropped = read(corpus(tmp_path, [cut.mix(cut_of(sound(tmp_path / "b.wav")), preserve_id="left")]))
    assert "a mix of 2 utterances" in dropped["a.wav"]


def test_stored_features_of_padded_and_mixed_cuts(tmp_path: Path) -> None:
    pytest.importorskip("lilcom", reason="needs lilcom to compress features")
    cut, noise = cut_of(sound(tmp_path / "a.wav")), sound(tmp_path / "noise.wav").to_cut()
    with LilcomChunkyWriter(tmp_path / "feats") as storage:
        cut, noise = (c.compute_and_store_features(FBANK, storage).drop_recording() for c in (cut, noise))
    found = read_one(tmp_path, cut.pad(num_frames=300, preserve_id=True))
    np.testing.assert_array_equal(found.features, cut.load_features())
    assert found.labels.tolist() == LABELS
    mixed = cut.mix(noise, snr=10, preserve_id="left")
    found = read_one(tmp_path, mixed)
    np.testing.assert_allclose(found.features, mixed.load_features(), atol=1e-5)
    for track in mixed.tracks:
        track.cut.features.type = "whisper-fbank"
    _, dropped = read(corpus(tmp_path, [mixed]))
    assert "a mix of stored features other than kaldi-fbank" in dropped["a.wav"]


def test_label_arrays_in_hdf5(tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="needs h5py to write HDF5 files")
    labels = RNG.integers(0, 7, 100)
    cuts = [cut_of(sound(tmp_path / "a.wav"))]
    with NumpyHdf5Writer(tmp_path / "ali") as storage:
        cuts[0].pdf = storage.store_array("a", labels, frame_shift=0.01, temporal_dim=0, start=0)
    cuts += [cuts[0].truncate(offset=0.3, duration=0.2).with_id("part"), cuts[0].pad(2.0).with_id("padded")]
    source = corpus(tmp_path, cuts, array="pdf")
    assert source.num_classes == labels.max() + 1
    whole, part, padded = read(source)[0]
    assert whole.labels.tolist() == padded.labels.tolist() == labels.tolist()
    assert part.labels.tolist() == labels[30:50].tolist()
    assert source.phones == ()
    assert whole.text == "words"
    assert corpus(tmp_path, cuts, array="pdf", num_classes=50).num_classes == 50
    dropped = read(source, "train")[1]
    assert "no array 'pdf' is attached" in next(iter(dropped.values()))


def test_only_the_cuts_of_a_part_become_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = sound(tmp_path / "a.wav")
    source = corpus(tmp_path, [cut_of(recording).with_id(f"c{i:02d}") for i in range(40)])
    made = []
    monkeypatch.setattr(
        "ngsgd.data.corpora.lhotse.LhotseCorpus._utterance", lambda self, cut: made.append(cut.id) or cut
    )
    original, opened = lhotse.serialization.deserialize_item, []
    monkeypatch.setattr(
        "lhotse.serialization.deserialize_item", lambda fields: opened.append(fields["id"]) or original(fields)
    )
    names = [cut.id for part in range(7) for cut in source.read("test", part, 7, print)]
    assert names == [f"c{i:02d}" for i in range(40)] == opened == made


def test_cuts_are_made_of_recordings_and_supervisions(tmp_path: Path) -> None:
    """Compares the cuts with Lhotse's own; a cut that cannot be made is dropped."""
    recordings = [sound(tmp_path / f"{name}.wav", 2.0) for name in "abc"]
    segments = [
        SupervisionSegment(f"{recording.id}-{i}", recording.id, 0.5 * i, 0.7, text=f"number {i}")
        for i in (0, 1, 2)
        for recording in recordings
    ]
    expected = {
        cut.id: cut
        for cut in CutSet.from_manifests(
            recordings=lhotse.RecordingSet.from_recordings(recordings),
            supervisions=lhotse.SupervisionSet.from_segments(segments),
        ).trim_to_supervisions(keep_overlapping=False)
    }
    segments.append(SupervisionSegment("lost", "nowhere", 0.0, 1.0))
    segments.append(SupervisionSegment("late", "a.wav", 5.0, 1.0))
    lhotse.RecordingSet.from_recordings(recordings).to_file(tmp_path / "r.jsonl")
    lhotse.SupervisionSet.from_segments(segments).to_file(tmp_path / "s.jsonl")
    manifests = Manifests(None, tmp_path / "r.jsonl", tmp_path / "s.jsonl")
    names, dropped, found = manifests.names(), {}, []
    assert len(names) == 11
    for first in range(0, 11, 4):
        found += list(
            manifests.read(
                first, first + 4, lambda name: name != "b.wav-1", Items(Locations(tmp_path)), dropped.__setitem__
            )
        )
    assert [cut.id for cut in found] == [n for n in names if n not in ("b.wav-1", "lost", "late")]
    assert {cut.id: cut for cut in found} == {name: c for name, c in expected.items() if name != "b.wav-1"}
    assert "its recording is not in" in dropped["lost"]
    assert "no cut can be made of it" in dropped["late"]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lilcom", reason="needs lilcom to compress features")
    cut = cut_of(sound(tmp_path / "a.wav"))
    with LilcomChunkyWriter(tmp_path / "feats") as storage:
        cut = cut.compute_and_store_features(FBANK, storage)
    monkeypatch.setitem(sys.modules, "lilcom", None)
    source = corpus(tmp_path, [cut])
    assert "pip install 'ngsgd[lilcom]'" in read(source)[1]["a.wav"]
    (tmp_path / "train.jsonl").write_text(json.dumps(cut.to_dict()) + "\n" + json.dumps(cut.with_id("b").to_dict()))
    sides = (Manifests(tmp_path / f"{side}.jsonl", None, None) for side in ("train", "test"))
    labels = LabelOptions(None, "phone", tmp_path / "symbols", 1)
    with pytest.raises(DataError, match=r"none of its first cuts .* pip install 'ngsgd\[lilcom\]'"):
        LhotseCorpus(*sides, Locations(tmp_path), "kaldi-fbank", labels, None, 1)


def test_paths_of_another_machine_are_replaced(tmp_path: Path) -> None:
    source = {"type": "file", "channels": [0], "source": "/home/ann/audio/a.wav"}
    fields = {"sources": [source], "features": {"storage_type": "numpy_files", "storage_path": "/home/ann/feats"}}
    fields["features"]["storage_key"] = "a.npy"
    Items(Locations(tmp_path, {"/home/ann": "data"})).check(fields)
    assert source["source"] == f"{tmp_path}/data/audio/a.wav"
    assert fields["features"]["storage_path"] == f"{tmp_path}/data/feats"
