"""Tests of the readers of Lhotse's arrays: the same numbers as Lhotse's own, and damaged files."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kaldiio
import numpy as np
import pytest
from lhotse import LilcomChunkyWriter, NumpyFilesWriter, NumpyHdf5Writer
from lhotse.features.io import LilcomHdf5Writer, get_reader

from ngsgd.data.hdf5 import Hdf5File
from ngsgd.data.lhotse_storage import READERS, decompress, register
from ngsgd.errors import NgsgdError, UtteranceError
from ngsgd.kaldi.tables import Locations

from ..kaldi.test_fuzz import check_damaged, mutate

h5py = pytest.importorskip("h5py", reason="needs h5py to write HDF5 files")
lilcom = pytest.importorskip("lilcom", reason="needs lilcom to compress features")

RNG = np.random.default_rng(0)
FEATURES = {f"utt-{i}": RNG.normal(size=(n, 4)).astype(np.float32) for i, n in enumerate((1, 7, 500, 501, 1730))}
WRITERS = {
    "lilcom_chunky": LilcomChunkyWriter,
    "lilcom_hdf5": LilcomHdf5Writer,
    "numpy_hdf5": NumpyHdf5Writer,
    "numpy_files": NumpyFilesWriter,
}
RANGES = [(0, None), (0, 1), (3, 9), (499, 501), (500, 1000), (501, None), (900, 1730), (2000, 3000)]


@pytest.mark.parametrize("kind", WRITERS)
def test_frames_are_those_that_lhotse_reads(tmp_path: Path, kind: str) -> None:
    with WRITERS[kind](tmp_path / "feats") as writer:
        keys = {name: writer.write(name, array) for name, array in FEATURES.items()}
    path = str(writer.storage_path)
    expected, reader = get_reader(kind)(path), get_reader(register(kind, Locations(tmp_path)))(path)
    for name, key in keys.items():
        for first, last in RANGES:
            if first < len(FEATURES[name]):
                np.testing.assert_array_equal(reader.read(key, first, last), expected.read(key, first, last))
        np.testing.assert_allclose(reader.read(key), FEATURES[name], atol=0.02)


def test_matrices_of_kaldi(tmp_path: Path) -> None:
    kaldiio.save_ark(str(tmp_path / "feats.ark"), FEATURES, scp=str(tmp_path / "feats.scp"))
    places = dict(line.split() for line in (tmp_path / "feats.scp").read_text().splitlines())
    script = (tmp_path / "feats.scp").read_text().replace(f"{tmp_path}/", "")
    (tmp_path / "feats.scp").write_text(script + "bad gzip -dc feats.gz |\n")
    kind = register("kaldiio", Locations(tmp_path))
    for name, place in places.items():
        reader = get_reader(kind)(place.removeprefix(f"{tmp_path}/"))
        np.testing.assert_array_equal(reader.read(name, 3, 9), FEATURES[name][3:9])
    scp = get_reader(kind)(str(tmp_path / "feats.scp"))
    with pytest.raises(NgsgdError, match="the entry of bad is a command"):
        scp.read("utt-1")
    (tmp_path / "feats2.scp").write_text(script)
    scp = get_reader(kind)(str(tmp_path / "feats2.scp"))
    np.testing.assert_array_equal(scp.read("utt-4"), FEATURES["utt-4"])
    with pytest.raises(UtteranceError, match="no entry utt-9"):
        scp.read("utt-9")


def test_integers_and_nested_names_in_hdf5(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {}
    with h5py.File(tmp_path / "a.h5", "w") as f:
        for i in RNG.permutation(700):
            name = f"utt-{i}/part" if i % 7 == 0 else f"utt-{i}"
            kind = (np.int32, np.int64, np.uint8, np.float64, np.float16, ">i4")[i % 6]
            arrays[name] = RNG.integers(0, 99, size=i % 50).astype(kind)
            f.create_dataset(name, data=arrays[name])
        f.create_dataset("compressed", data=np.zeros((100, 3)), compression="gzip")
        f.create_dataset("words", data=["a", "b"])
        f.create_dataset("far", data=np.zeros(9), external=[(str(tmp_path / "a.h5"), 0, 72)])
        f["link"] = h5py.SoftLink("/utt-1")
        f.create_group("outside")["away"] = h5py.ExternalLink("b.h5", "/utt-1")
    with Hdf5File(tmp_path / "a.h5") as source:
        for name, array in arrays.items():
            found = source.read(name)
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array)
            np.testing.assert_array_equal(source.read(name, 5, 20), array[5:20])
        for name, reason in [
            ("nothing", "no dataset"), ("utt-1/more", "no dataset"), ("utt-0", "not a dataset"), ("link", "no dataset"),
            ("outside/away", "no dataset"), ("compressed", "in chunks"), ("words", "neither numbers"),
            ("far", "in another file"),
        ]:  # fmt: skip
            with pytest.raises(UtteranceError, match=rf"a\.h5: .*{reason}"):
                source.read(name)
    with h5py.File(tmp_path / "b.h5", "w", libver="latest") as f:
        f["a"] = np.zeros(3)
    with pytest.raises(UtteranceError, match="newer format"):
        Hdf5File(tmp_path / "b.h5")


def test_a_chunk_that_expands_too_far_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = lilcom.compress(np.zeros((100_000, 80), np.float32))
    assert len(zeros) < 100
    monkeypatch.setattr("ngsgd.data.lhotse_storage.MAX_BYTES", 2**20)
    with pytest.raises(UtteranceError, match="more than 1048576 bytes"):
        decompress([zeros])


@pytest.mark.parametrize("key", ["", "0", "0,", "-1,5", "0,99999999999999999", "5,1,a", "0,0,0", "\u0661,2", "1" * 30])
def test_chunks_outside_the_file_are_refused(tmp_path: Path, key: str) -> None:
    (tmp_path / "a.lca").write_bytes(lilcom.compress(np.zeros((5, 3), np.float32)))
    if key == "0":  # no chunk at all
        assert READERS["lilcom_chunky"](str(tmp_path / "a.lca"), key, 0, None, tmp_path).shape == (0, 0)
        return
    with pytest.raises(UtteranceError):
        READERS["lilcom_chunky"](str(tmp_path / "a.lca"), key, 0, None, tmp_path)


def chunky(folder: Path) -> tuple[Path, str]:
    with LilcomChunkyWriter(folder / "f") as writer:
        key = writer.write("a", FEATURES["utt-3"][:, :2])
    return Path(writer.storage_path), key


def hdf5(folder: Path) -> tuple[Path, str]:
    with NumpyHdf5Writer(folder / "f") as writer:
        for i in range(20):
            writer.write(f"utt-{i}", FEATURES["utt-1"])
    return Path(writer.storage_path), "utt-13"


def lilcom_hdf5(folder: Path) -> tuple[Path, str]:
    with LilcomHdf5Writer(folder / "f") as writer:
        writer.write("utt-1", FEATURES["utt-1"])
    return Path(writer.storage_path), "utt-1"


DAMAGED: dict[str, Callable[[Path], tuple[Path, str]]] = {
    "lilcom_chunky": chunky,
    "numpy_hdf5": hdf5,
    "lilcom_hdf5": lilcom_hdf5,
}


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("number", [200, pytest.param(5000, marks=pytest.mark.slow)])
def test_damaged_storage(tmp_path: Path, kind: str, number: int) -> None:
    path, key = DAMAGED[kind](tmp_path)
    check_damaged(
        path.read_bytes(), path, lambda path: READERS[kind](str(path), key, 0, None, tmp_path), number
    )  # fmt: skip


def test_damaged_bytes_of_lilcom() -> None:
    whole = lilcom.compress(FEATURES["utt-1"])
    outcomes = set()
    for seed in range(3000):
        try:
            decompress([mutate(whole, random.Random(seed))])
            outcomes.add("read")
        except UtteranceError as e:
            outcomes.add(str(e)[:24])
    assert {"read", "not compressed by lilcom"} <= outcomes
