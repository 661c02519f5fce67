"""Tests of Lhotse manifests: features, audio, label arrays, alignments, and hostile entries."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import lhotse
import numpy as np
import pytest
import soundfile
from lhotse import CutSet, NumpyFilesWriter, Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.supervision import AlignmentItem

from ngsgd.data.corpora.lhotse import LabelOptions, LhotseCorpus
from ngsgd.data.corpus import Subset, read_info
from ngsgd.data.lhotse_items import Items
from ngsgd.data.lhotse_manifests import Manifests
from ngsgd.data.parts import assemble, prepare_part
from ngsgd.errors import ConfigError, DataError, NgsgdError
from ngsgd.kaldi.tables import Locations

RATE = 8000
RNG = np.random.default_rng(0)
PHONES = [("a", 0.0, 0.2), ("b", 0.2, 0.31), ("sil", 0.55, 0.05)]  # the last 0.4 s have no phone


def recordings(root: Path, side: str, number: int) -> tuple[list[Recording], list[SupervisionSegment]]:
    (root / "wav").mkdir(exist_ok=True)
    audio, segments = [], []
    for i in range(number):
        name = f"{side}{i:02d}"
        soundfile.write(root / f"wav/{name}.wav", 0.1 * RNG.normal(size=RATE), RATE)
        recording = Recording.from_file(root / f"wav/{name}.wav", recording_id=name)
        alignment = {"phone": [AlignmentItem(*item) for item in PHONES]}
        audio.append(recording)
        segments.append(SupervisionSegment(name, name, 0.0, recording.duration, text=f"said  {i}", alignment=alignment))
    return audio, segments


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Writes manifests of recordings and supervisions, and of cuts with stored features and labels."""
    for side, number in (("train", 20), ("test", 4)):
        audio, segments = recordings(tmp_path, side, number)
        RecordingSet.from_recordings(audio).to_file(tmp_path / f"{side}_recordings.jsonl.gz")
        SupervisionSet.from_segments(segments).to_file(tmp_path / f"{side}_supervisions.jsonl.gz")
        cuts = CutSet.from_manifests(
            recordings=RecordingSet.from_recordings(audio), supervisions=SupervisionSet.from_segments(segments)
        )
        extractor = lhotse.Mfcc(lhotse.MfccConfig(sampling_rate=RATE))
        cuts = cuts.compute_and_store_features(
            extractor, tmp_path / "feats", storage_type=NumpyFilesWriter, progress_bar=False
        )
        labelled = []
        with NumpyFilesWriter(tmp_path / "ali") as writer:
            for cut in cuts:
                labels = RNG.integers(0, 9, cut.num_frames).astype(np.int32)
                cut.pdf_ids = writer.store_array(
                    cut.id, labels, frame_shift=cut.frame_shift, temporal_dim=0, start=cut.start
                )
                labelled.append(cut)
        CutSet.from_cuts(labelled).to_file(tmp_path / f"{side}_cuts.jsonl.gz")
    (tmp_path / "symbols").write_text("sil 0\na 1\nb 2\n")
    for manifest in tmp_path.glob("*.jsonl.gz"):  # paths become relative to the experiment
        manifest.write_bytes(
            gzip.compress(gzip.decompress(manifest.read_bytes()).replace(f"{tmp_path}/".encode(), b""))
        )
    return tmp_path


def cuts_of(path: Path, root: Path) -> list[lhotse.cut.Cut]:
    """Returns all cuts of a manifest; none may be unusable."""

    def drop(name: str, reason: str) -> None:
        raise AssertionError(f"{name}: {reason}")

    return list(Manifests(path, None, None).read(0, 10**9, lambda name: True, Items(Locations(root)), drop))


def corpus(root: Path, cuts: bool, *, num_valid: int = 5, extractor: str = "kaldi-fbank", pipes: bool = False, **more):
    sides = [
        Manifests(root / f"{side}_cuts.jsonl.gz", None, None)
        if cuts
        else Manifests(None, root / f"{side}_recordings.jsonl.gz", root / f"{side}_supervisions.jsonl.gz")
        for side in ("train", "test")
    ]
    labels = LabelOptions(
        **(
            {
                "array": "pdf_ids" if cuts else None,
                "alignment": "phone",
                "symbols": None if cuts else root / "symbols",
                "states_per_symbol": 2,
            }
            | more
        )
    )
    return LhotseCorpus(*sides, Locations(root, allow_pipes=pipes), extractor, labels, None, num_valid)


def prepare(root: Path, source: LhotseCorpus, num_parts: int = 1, share: float = 0.01):
    parts = [root / "parts" / f"{num_parts}.{k}" for k in range(num_parts)]
    for k, part in enumerate(parts):
        prepare_part(source, part, k, num_parts)
    assemble(parts, root / f"corpus{num_parts}", share)
    return read_info(root / f"corpus{num_parts}")


def test_stored_features_and_arrays(root: Path) -> None:
    info = prepare(root, corpus(root, cuts=True))
    assert (info.dim, len(info.class_counts)) == (13, 9)
    assert info.num_utterances == {"train": 15, "valid": 5, "test": 4}
    test = Subset(root / "corpus1", "test")
    cut = cuts_of(root / "test_cuts.jsonl.gz", root)[0]
    x, y = test.utterance(0)
    np.testing.assert_array_equal(x, cut.load_features())
    np.testing.assert_array_equal(y, cut.load_pdf_ids())
    assert test.texts == [f"said {i}" for i in range(4)]


def test_audio_and_phones(root: Path) -> None:
    infos = [prepare(root, corpus(root, cuts=False), num_parts) for num_parts in (1, 3)]
    assert infos[0] == infos[1]
    assert (infos[0].dim, len(infos[0].class_counts)) == (80, 6)
    x, y = Subset(root / "corpus1", "test").utterance(0)
    audio, _ = soundfile.read(root / "wav/test00.wav", dtype="float32")
    expected = lhotse.Fbank(lhotse.FbankConfig(sampling_rate=RATE)).extract(audio, RATE)
    np.testing.assert_allclose(x, expected, atol=1e-4)
    assert len(y) == len(x) == 100
    # Each phone has two states of equal length; frames without a phone get the first symbol.
    expected = [2] * 10 + [3] * 10 + [4] * 16 + [5] * 15 + [0] * 4 + [0] * 3 + [1] * 2 + [0] * 40
    assert y.tolist() == expected


def test_cut_from_the_middle_of_a_recording(root: Path) -> None:
    """Times of an alignment are relative to the recording, not to the cut."""
    cuts = list(CutSet.from_file(root / "train_cuts.jsonl.gz"))
    cuts[1:] = [cut.truncate(offset=0.15, duration=0.3, preserve_id=True) for cut in cuts[1:]]
    CutSet.from_cuts(cuts).to_file(root / "train_cuts.jsonl.gz")
    source = corpus(root, cuts=True, array=None, symbols=root / "symbols", num_valid=1)
    (utterance,) = (u for u in source.read("train", 0, 1, print) if u.name == cuts[5].id)
    assert len(utterance.features) == 30
    assert utterance.labels.tolist() == [3] * 5 + [4] * 16 + [5] * 9  # the second half of a, most of b


def test_extractor_from_a_settings_file(root: Path) -> None:
    lhotse.Mfcc(lhotse.MfccConfig(sampling_rate=RATE, num_ceps=7)).to_yaml(root / "mfcc.yaml")
    assert corpus(root, cuts=False, extractor="mfcc.yaml").dim == 7
    assert corpus(root, cuts=False, extractor="kaldi-mfcc").dim == 13
    for wrong in ("kaldi-plp", "symbols"):
        with pytest.raises(ConfigError, match="feature_extractor: neither"):
            corpus(root, cuts=False, extractor=wrong)


def test_perturbed_copies_are_in_the_same_subset(root: Path) -> None:
    cuts = list(CutSet.from_file(root / "train_cuts.jsonl.gz"))
    copies = [cut.with_id(f"{cut.id}_sp{speed}") for cut in cuts for speed in (0.9, 1.1)]
    CutSet.from_cuts(cuts + copies).to_file(root / "train_cuts.jsonl.gz")
    prepare(root, corpus(root, cuts=True, num_valid=4))
    valid = set(Subset(root / "corpus1", "valid").names)
    assert len(valid) == 6
    assert valid == {
        name for base in {n.split("_sp")[0] for n in valid} for name in (base, f"{base}_sp0.9", f"{base}_sp1.1")
    }


def change(path: Path, line: int, edit) -> None:
    """Applies `edit` to a line of a manifest."""
    lines = [json.loads(text) for text in gzip.decompress(path.read_bytes()).splitlines()]
    edit(lines[line])
    path.write_bytes(gzip.compress("".join(json.dumps(fields) + "\n" for fields in lines).encode()))


def source_with(**fields):
    return lambda cut: cut["recording"]["sources"][0].update(fields)


def features_with(**fields):
    return lambda cut: cut["features"].update(fields)


def transform_with(name: str, **values):
    return lambda cut: cut["recording"].update(transforms=[{"name": name, "kwargs": values}])


HOSTILE = {
    "command": (source_with(type="command", source="touch pwned"), "allow_pipes"),
    "url": (source_with(type="url", source="http://localhost/a.wav"), "allow_pipes"),
    "piped url": (source_with(type="url", source="pipe:touch pwned"), "allow_pipes"),
    "sphere": (
        lambda cut: (cut.pop("features"), source_with(source="$(touch pwned).sph")(cut)),
        r"No such file.*pwned",
    ),
    "pipe": (source_with(source="pipe:touch pwned;.wav"), "allow_pipes"),
    "other audio": (source_with(source="a.mp4"), "audio must be one of"),
    "storage": (features_with(storage_type="memory_raw", storage_key="gASV"), "only numpy_files, .* are supported"),
    "own storage": (features_with(storage_type=["numpy_files"]), "only numpy_files, .* are supported"),
    "piped features": (features_with(storage_path="pipe:touch pwned #"), "allow_pipes"),
    "piped key": (features_with(storage_key="pipe:touch pwned #"), "allow_pipes"),
    "far features": (features_with(storage_path="http://localhost"), "allow_pipes"),
    "piped script": (features_with(storage_type="kaldiio", storage_path="touch pwned |"), "allow_pipes"),
    "piped array": (
        lambda cut: cut["custom"]["pdf_ids"]["array"].update(storage_path="pipe:touch pwned #"),
        "allow_pipes",
    ),
    "rates": (transform_with("Resample", source_sampling_rate=1, target_sampling_rate=10**10), "sampling rate 1, "),
    "filter": (transform_with("Resample", source_sampling_rate=199_999, target_sampling_rate=2**17), "too much memory"),
    "speed": (transform_with("Speed", factor=1e9), "Speed with a factor"),
    "transform": (transform_with("Compress", codec="opus"), "audio transform 'Compress'"),
    "no transform": (lambda cut: cut["recording"].update(transforms=["Speed"]), "not a cut"),
    "rate": (lambda cut: cut["recording"].update(sampling_rate=10**12), "sampling rate 1000000000000"),
    "hidden": (
        lambda cut: cut["custom"].update(more=[{"sources": [{"type": "command", "source": "touch pwned"}]}]),
        "allow_pipes",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_entries_are_refused(root: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    change(root / "train_cuts.jsonl.gz", 7, HOSTILE[kind][0])
    info = prepare(root, corpus(root, cuts=True), share=0.05)
    ((name, reason),) = info.dropped.items()
    assert name.startswith("train07")
    assert re.search(HOSTILE[kind][1], reason), reason
    assert not (root / "pwned").exists()


def remove_array(cut) -> None:
    del cut["custom"]["pdf_ids"]


FAULTS = {
    "no file": (features_with(storage_key="nothing.npy"), "no such file"),
    "no array": (remove_array, "no array 'pdf_ids' is attached"),
    "nothing": (lambda cut: (cut.pop("features"), cut.pop("recording")), "neither features nor audio"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_bad_cut_is_dropped(root: Path, kind: str) -> None:
    edit, reason = FAULTS[kind]
    change(root / "train_cuts.jsonl.gz", 3, edit)
    info = prepare(root, corpus(root, cuts=True), share=0.05)
    (name,) = info.dropped
    assert name.startswith("train03")
    assert reason in info.dropped[name]
    with pytest.raises(DataError, match="max_bad_utterance_share"):
        assemble([root / "parts/1.0"], root / "again", 0.01)


def test_missing_symbols_and_malformed_tables_are_refused(root: Path) -> None:
    (root / "symbols").write_text("sil 0\na 1\n")
    with pytest.raises(DataError, match="symbol 'b' is not in the table"):
        prepare(root, corpus(root, cuts=False))
    for wrong in ("", "a 1\n", "a x\n", "a 0\nb 4000000000\n"):
        (root / "symbols").write_text(wrong)
        with pytest.raises(DataError, match="symbols: "):
            corpus(root, cuts=False)


@pytest.mark.parametrize(
    "text",
    [b"{", b"[1]\n", b'{"type": "MonoCut"}\n', b'{"id": [5]}\n', b"[" * 100_000, b"\xff\n", b'"a"\n'],
)
def test_malformed_manifests_are_refused(root: Path, text: bytes) -> None:
    (root / "train_cuts.jsonl.gz").write_bytes(gzip.compress(text))
    with pytest.raises(NgsgdError, match="train_cuts"):
        corpus(root, cuts=True)
    (root / "train_cuts.jsonl.gz").write_bytes(text)
    with pytest.raises(NgsgdError, match="cannot be read"):
        corpus(root, cuts=True)


def test_duplicate_cut_names_are_refused(root: Path) -> None:
    text = gzip.decompress((root / "train_cuts.jsonl.gz").read_bytes())
    (root / "train_cuts.jsonl.gz").write_bytes(gzip.compress(text + text))
    with pytest.raises(DataError, match="two cuts of the same name"):
        corpus(root, cuts=True)
