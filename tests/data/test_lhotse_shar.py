"""Tests of folders in Lhotse's Shar format: the same utterances as from manifests, and hostile archives."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lhotse import CutSet, NumpyFilesWriter
from lhotse.shar import SharWriter

from ngsgd.data import lhotse_shar
from ngsgd.data.corpora.lhotse import LabelOptions, LhotseCorpus
from ngsgd.data.corpus import Utterance
from ngsgd.data.lhotse_items import Items
from ngsgd.data.lhotse_manifests import Manifests
from ngsgd.errors import DataError, UtteranceError
from ngsgd.kaldi.tables import Locations

from ..kaldi.test_fuzz import check_damaged
from .test_lhotse_cuts import FBANK, LABELS, cut_of, sound

NAMES = [f"c{i}" for i in range(4)] + ["ünïcode-" + "long" * 40]


def write(root: Path, fields: dict[str, str]) -> list[Utterance]:
    """Writes folders with five test cuts in shards of two; returns the utterances of the same cuts in a manifest."""
    cuts = []
    with NumpyFilesWriter(root / "feats") as storage:
        for name in NAMES:
            cut = cut_of(sound(root / f"{name[:2]}.wav")).with_id(name)
            if "features" in fields:
                cut = cut.compute_and_store_features(FBANK, storage)
            cut.pdf = storage.store_array(name, np.array(LABELS), frame_shift=0.01, temporal_dim=0, start=0)
            cuts.append(cut)
    CutSet.from_cuts(cuts).to_file(root / "test.jsonl")
    for side in ("train", "test"):
        (root / side).mkdir()
        with SharWriter(str(root / side), fields, shard_size=2, warn_unused_fields=False) as writer:
            for cut in cuts:
                writer.write(cut)
    (root / "symbols").write_text("sil 0\na 1\nb 2\n")
    return list(corpus(root, root / "test.jsonl").read("test", 0, 1, print))


def corpus(root: Path, test: Path, array: str | None = None) -> LhotseCorpus:
    labels = LabelOptions(array, "phone", None if array else root / "symbols", 1)
    sides = (Manifests(path, None, None) for path in (root / "train", test))
    return LhotseCorpus(*sides, Locations(root), "kaldi-fbank", labels, None, 2)


FIELDS: list[dict[str, str]] = [
    {"recording": "flac", "pdf": "numpy"},
    {"recording": "wav", "features": "numpy"},
    {"features": "lilcom", "pdf": "numpy"},
]


@pytest.mark.parametrize("fields", FIELDS, ids=str)
def test_utterances_are_those_of_the_manifest(tmp_path: Path, fields: dict[str, str]) -> None:
    if "lilcom" in fields.values():
        pytest.importorskip("lilcom", reason="needs lilcom to compress features")
    expected = write(tmp_path, fields)
    source = corpus(tmp_path, tmp_path / "test", "pdf" if "pdf" in fields else None)
    for num_parts in (1, 3):
        found = [u for part in range(num_parts) for u in source.read("test", part, num_parts, print)]
        assert [u.name for u in found] == NAMES
        for utterance, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(utterance.features, other.features, atol=0.05)
            assert utterance.labels.tolist() == LABELS
    train, valid = ([u.name for u in source.read(subset, 0, 1, print)] for subset in ("train", "valid"))
    assert sorted(train + valid) == sorted(NAMES)
    assert len(valid) == 2


@pytest.fixture
def shar(tmp_path: Path) -> Path:
    write(tmp_path, {"recording": "wav", "pdf": "numpy"})
    return tmp_path


def read(root: Path) -> tuple[list[Utterance], dict[str, str]]:
    dropped: dict[str, str] = {}
    return list(corpus(root, root / "test", "pdf").read("test", 0, 1, dropped.__setitem__)), dropped


def members(path: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path) as f:
        return [(info, f.extractfile(info).read()) for info in f]


def rewrite(path: Path, edit: Callable[[list[tuple[tarfile.TarInfo, bytes]]], object]) -> None:
    """Applies `edit` to the members of an archive."""
    contents = members(path)
    edit(contents)
    with tarfile.open(path, "w") as f:
        for info, data in contents:
            f.addfile(info, io.BytesIO(data))


def edit_meta(**values: object) -> Callable[[list[tuple[tarfile.TarInfo, bytes]]], object]:
    def edit(contents: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        info, data = contents[1]
        changed = json.dumps(json.loads(data) | values).encode()
        info.size = len(changed)
        contents[1] = (info, changed)

    return edit


def as_type(kind: bytes) -> Callable[[list[tuple[tarfile.TarInfo, bytes]]], object]:
    def edit(contents: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        contents[0][0].type, contents[0][0].linkname = kind, "/etc/passwd"

    return edit


HOSTILE: dict[str, tuple[str, Callable[[list[tuple[tarfile.TarInfo, bytes]]], object], str]] = {
    "symbolic link": ("recording", as_type(tarfile.SYMTYPE), "not a regular file"),
    "device": ("recording", as_type(tarfile.CHRTYPE), "not a regular file"),
    "sparse": ("recording", as_type(tarfile.GNUTYPE_SPARSE), "not a regular file"),
    "command": (
        "recording",
        edit_meta(sources=[{"type": "command", "channels": [0], "source": "touch pwned"}]),
        "does not say that the data is in the archive",
    ),
    "rate": ("recording", edit_meta(sampling_rate=10**9), "sampling rate 1000000000"),
    "storage": ("pdf", edit_meta(array={"storage_type": "memory_raw", "shape": [1]}), "does not say that the data"),
    "other cut": ("pdf", lambda contents: contents.reverse(), "no description"),
    "escape": ("pdf", lambda contents: setattr(contents[0][0], "name", "../../c0.npy"), "no description"),
    "ending": ("pdf", lambda contents: setattr(contents[0][0], "name", "c0.pkl"), "only .npy, .llc are supported"),
    "other kind": ("recording", edit_meta(sources=[], storage_type="shar"), "only .npy, .llc are supported"),
    "swapped": ("pdf", lambda contents: contents.append(contents.pop(0)), "no description"),
    "missing": ("pdf", lambda contents: contents.clear(), "it ends before this cut"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives(shar: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first cut is dropped; where the archive cannot be followed any further, so is the other one of its shard."""
    monkeypatch.chdir(shar)
    field, edit, reason = HOSTILE[kind]
    rewrite(shar / f"test/{field}.000000.tar", edit)
    found, dropped = read(shar)
    assert reason in dropped["c0"], dropped
    assert [u.name for u in found] in (NAMES[1:], NAMES[2:])
    assert len(found) + len(dropped) == len(NAMES)
    assert not (shar / "pwned").exists()


def test_folders_that_are_not_in_the_format(shar: Path) -> None:
    (shar / "test/recording.000009.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"recording\.000009\.tar: no cuts of this number"):
        read(shar)
    (shar / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no cuts"):
        corpus(shar, shar / "empty")


def test_other_formats_of_archives(tmp_path: Path) -> None:
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        names = ["a.npy", "folder/" + "b" * 90 + ".npy"] + ["c" * 150] * (kind != tarfile.USTAR_FORMAT)
        with tarfile.open(tmp_path / "a.tar", "w", format=kind) as f:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = 5
                f.addfile(info, io.BytesIO(b"12345"))
        with open(tmp_path / "a.tar", "rb") as f:
            found = list(lhotse_shar._members(tmp_path / "a.tar", f))
        assert [member.name for member in found] == names


@pytest.mark.parametrize("field", ["recording", "pdf"])
@pytest.mark.parametrize("number", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_archives(shar: Path, field: str, number: int) -> None:
    def read_all(path: Path) -> None:
        def drop(name: str, reason: str) -> None:
            raise UtteranceError(reason)

        for cut in lhotse_shar.read(shar / "test", 0, 2, lambda name: True, Items(Locations(shar)), drop):
            assert cut.load_custom("pdf").tolist() == LABELS or field == "pdf"

    path = shar / f"test/{field}.000000.tar"
    check_damaged(path.read_bytes(), path, read_all, number)
