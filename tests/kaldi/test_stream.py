"""Tests of reading Kaldi's basic types, as written by kaldiio and Kaldi, and malformed."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tracemalloc
from pathlib import Path

import kaldiio
import numpy as np
import pytest

from ngsgd.errors import DataError
from ngsgd.kaldi.output import Output
from ngsgd.kaldi.stream import Input
from ngsgd.kaldi.tables import Locations, Script, integers, matrix, read_archive, read_lines

MATRIX = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)


def source(data: bytes) -> Input:
    stream = Input(io.BytesIO(data), "file")
    stream.start()
    return stream


def first(path: Path, read=matrix):
    return next(iter(read_archive(path, read)))[1]


@pytest.mark.parametrize("method", [None, 1, 2, 3, 5])
@pytest.mark.parametrize("zipped", [False, True])
def test_matrices_of_all_types(tmp_path: Path, method: int | None, zipped: bool) -> None:
    kaldiio.save_ark(str(tmp_path / "a.ark"), {"u": MATRIX, "v": MATRIX[:3]}, compression_method=method)
    expected = dict(kaldiio.load_ark(str(tmp_path / "a.ark")))
    path = tmp_path / "a.ark"
    if zipped:
        path = tmp_path / "a.ark.gz"
        path.write_bytes(gzip.compress((tmp_path / "a.ark").read_bytes()))
    found = dict(read_archive(path, matrix))
    assert found.keys() == {"u", "v"}
    for key in found:
        np.testing.assert_array_equal(found[key], expected[key])
    tolerance = {None: 0.0, 1: 0.05, 2: 0.05, 3: 1e-3, 5: 0.02}[method]
    if method != 5:
        np.testing.assert_allclose(found["u"], MATRIX, atol=tolerance)


def test_doubles_stay_doubles(tmp_path: Path) -> None:
    kaldiio.save_ark(str(tmp_path / "a.ark"), {"u": MATRIX.astype(np.float64) / 3})
    found = first(tmp_path / "a.ark")
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, MATRIX.astype(np.float64) / 3)


@pytest.mark.parametrize("array", [MATRIX, MATRIX[0], MATRIX[:, :1], np.zeros((0, 0), np.float32)])
@pytest.mark.parametrize("binary", [True, False])
def test_arrays_are_read_as_written(array: np.ndarray, binary: bool) -> None:
    out = Output(binary=binary)
    out.array(array)
    stream = source(out.bytes())
    np.testing.assert_array_equal(stream.array(array.ndim).astype(np.float32), array)
    assert stream.at_end()


def test_text_archives_of_kaldi(tmp_path: Path) -> None:
    """The matrix begins with an integer, which makes other readers take it for an integer matrix."""
    (tmp_path / "t.ark").write_text("u  [\n  0 1.5 \n  -2e-05 inf ]\nv  [ ]\n")
    found = dict(read_archive(tmp_path / "t.ark", matrix))
    np.testing.assert_array_equal(found["u"], [[0, 1.5], [-2e-5, np.inf]])
    assert found["v"].size == 0


@pytest.mark.parametrize("text", [False, True])
def test_alignments(tmp_path: Path, text: bool) -> None:
    path = tmp_path / "ali.ark"
    entries = {"a": np.arange(300, dtype=np.int32), "b": np.array([7], np.int32)}
    if text:
        path.write_text("".join(f"{key} {' '.join(map(str, value))} \n" for key, value in entries.items()))
    else:
        kaldiio.save_ark(str(path), entries)
    found = dict(read_archive(path, integers))
    assert {k: v.tolist() for k, v in found.items()} == {k: v.tolist() for k, v in entries.items()}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    kaldiio.save_ark(str(tmp_path / "a.ark"), {"u": MATRIX, "v": MATRIX * 2}, scp=str(tmp_path / "full.scp"))
    (tmp_path / "a.scp").write_text((tmp_path / "full.scp").read_text().replace(f"{tmp_path}/", ""))
    return tmp_path / "a.scp"


def test_scripts_with_offsets_and_ranges(script: Path) -> None:
    entry = dict(read_lines(script))["v"]
    text = f"v {entry}\nr {entry}[2:4]\nc {entry}[:,1:2]\nb {entry}[0:19,4:4]\nlong {entry}[18:21]\n"
    script.write_text(text)
    reader = Script(script, Locations(script.parent))
    np.testing.assert_array_equal(reader.read("v"), MATRIX * 2)
    np.testing.assert_array_equal(reader.read("r"), MATRIX[2:5] * 2)  # ranges include both ends
    np.testing.assert_array_equal(reader.read("c"), MATRIX[:, 1:3] * 2)
    np.testing.assert_array_equal(reader.read("b"), MATRIX[:, 4:] * 2)
    # Kaldi accepts row ranges that end up to two frames after the matrix.
    np.testing.assert_array_equal(reader.read("long"), MATRIX[18:] * 2)


@pytest.mark.parametrize("bad", ["[0:23]", "[3:2]", "[5:]", "[-1:3]", "[:,0:5]", "[0:1,0:1,0:1]", "[0:1"])
def test_ranges_beyond_the_matrix_are_refused(script: Path, bad: str) -> None:
    script.write_text(f"u a.ark:2{bad}\n")
    with pytest.raises(DataError, match=r"a\.scp: u"):
        Script(script, Locations(script.parent)).read("u")


def test_script_entries_without_data_are_refused(script: Path) -> None:
    script.write_text("u nothing.ark:2\nw a.ark:99999999999\nx a.ark:7\n")
    reader = Script(script, Locations(script.parent))
    for key, reason in (("u", "no such file"), ("w", "truncated"), ("x", "expected")):
        with pytest.raises(DataError, match=rf"a\.scp: {key}: .*{reason}"):
            reader.read(key)


@pytest.mark.parametrize("entry", ["touch pwned |", "touch pwned|", "| touch pwned"])
def test_commands_are_not_run(script: Path, entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(script.parent)
    script.write_text(f"u {entry}\n")
    with pytest.raises(DataError, match=r"is a command .* unless the configuration has allow_pipes: true"):
        Script(script, Locations(script.parent)).read("u")
    assert not (script.parent / "pwned").exists()


def test_commands_are_run_with_allow_pipes(script: Path) -> None:
    script.write_text(f"u tail -c +3 {script.parent}/a.ark |\n")
    np.testing.assert_array_equal(Script(script, Locations(script.parent, allow_pipes=True)).read("u"), MATRIX)


class Trap:
    """Object that executes code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('it ran')",)


def test_only_types_of_kaldi_are_read(tmp_path: Path) -> None:
    npy = io.BytesIO()
    np.save(npy, MATRIX)
    for body in (b"PKL" + pickle.dumps(Trap()), b"NPY\x01\x80" + npy.getvalue(), b"RIFF....WAVE", b"AUDIO\x01\x05fLaC"):
        (tmp_path / "a.ark").write_bytes(b"u " + body)
        with pytest.raises(DataError, match=r"a\.ark"):
            first(tmp_path / "a.ark")


MALFORMED = [
    b"\0BFM \4" + struct.pack("<i", 2**30) + b"\4" + struct.pack("<i", 2**30),
    b"\0BFM \4" + struct.pack("<i", 2**14) + b"\4" + struct.pack("<i", 2**14),
    b"\0BDM \4" + struct.pack("<i", -3) + b"\4" + struct.pack("<i", 5),
    b"\0BCM " + struct.pack("<ffii", 0.0, 1.0, 2**30, 100),
    b"\0BCM2 " + struct.pack("<ffii", 0.0, 1.0, 2**15, 2**13),
    b"\0BCM3 " + struct.pack("<ffii", 0.0, 1.0, -1, -1),
    b"\0BFM \4\1\0\0\0\x08\1\0\0\0",
    b"[\n 1 2\n 3 ]\n",
    b"[ 1 two ]\n",
    b"[ 1 2",
    b"",
]


@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_matrices_are_refused_in_little_memory(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "a.ark").write_bytes(b"u " + body)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"a\.ark: "):
        first(tmp_path / "a.ark")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23


def test_malformed_alignments_are_refused(tmp_path: Path) -> None:
    for body in (b"\0B\4" + struct.pack("<i", 2**30), b"\0B\4\1\0\0\0\2\7\0\0\0", b"1 2 x\n", b"99999999999\n"):
        (tmp_path / "a.ark").write_bytes(b"u " + body)
        with pytest.raises(DataError, match=r"a\.ark: "):
            first(tmp_path / "a.ark", integers)


def test_damaged_gzip_files_are_refused(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b"utt%d 1 2 3\n" % i for i in range(20000)))
    for damaged in (whole[:-100], whole[: len(whole) // 2], b"not gzip", whole[:100] + b"\xff" * 50 + whole[150:]):
        (tmp_path / "ali.1.gz").write_bytes(damaged)
        with pytest.raises(DataError, match=r"ali\.1\.gz: "):
            list(read_archive(tmp_path / "ali.1.gz", integers))


def test_gzip_bomb_is_refused(tmp_path: Path) -> None:
    header = b"u \0BFM \4" + struct.pack("<i", 10_000) + b"\4" + struct.pack("<i", 10_000)
    (tmp_path / "a.ark.gz").write_bytes(gzip.compress(header + bytes(4 * 10**8)))
    tracemalloc.start()
    with pytest.raises(DataError, match="grows more than 100-fold"):
        first(tmp_path / "a.ark.gz")
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()


def test_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.ark")
    for path in (tmp_path / "a.ark", Path("/dev/zero"), tmp_path):
        with pytest.raises(DataError, match="not a file"):
            first(path)


def test_text_tables(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("a one  two \nb\n\n", encoding="utf-8")
    assert dict(read_lines(path)) == {"a": "one  two", "b": ""}
    path.write_bytes(b"a eins\nb zw\xf6lf\n")
    with pytest.raises(DataError, match="text: line 2 is not UTF-8"):
        dict(read_lines(path))
    path.write_text("a 1\na 2\n")
    with pytest.raises(DataError, match="text: a has two lines"):
        dict(read_lines(path))
