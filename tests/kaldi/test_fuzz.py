"""Reads thousands of damaged files: each is read or raises `NgsgdError`, and takes little memory."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import kaldiio
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ngsgd.cli.models import load
from ngsgd.data.kaldi_features import CmvnOptions
from ngsgd.data.lhotse_items import Items
from ngsgd.data.lhotse_manifests import Manifests
from ngsgd.errors import DataError, NgsgdError, UtteranceError
from ngsgd.kaldi.graph import prepare_graph
from ngsgd.kaldi.nnet2 import write_nnet2
from ngsgd.kaldi.specifiers import Rspecifier, Wspecifier
from ngsgd.kaldi.tables import Locations, Script, integers, matrix, read_archive, read_lines
from ngsgd.kaldi.transition import read_transition_model
from ngsgd.network.nnet2 import to_nnet2

from ..experiment import digit_loop
from .test_nnet2 import every_component

EXTREMES = [b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x00\x00\x00\x40"]
WORDS = [b"[", b"]", b"\n", b" ", b"nan", b"-1", b"1e999", b"<Nnet>", b"\0B", b"PKL", b"|", b"99999999999", b"\xc3("]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Returns `data` with one to four random changes, as damage or an attacker makes them."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1) if rng.random() < 0.5 else rng.randrange(min(200, len(changed)) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            changed[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            changed[at : at + 4] = rng.choice(EXTREMES)
        elif kind == 2:
            changed[at:at] = rng.choice(WORDS)
        elif kind == 3:
            del changed[at : at + rng.randint(1, 40)]
        elif kind == 4:
            del changed[at:]
        else:
            source = rng.randrange(len(changed) + 1)
            changed[at:at] = changed[source : source + rng.randint(1, 60)]
    return bytes(changed)


def nnet2(folder: Path, *, binary: bool) -> bytes:
    write_nnet2(every_component(), folder / "whole.mdl", binary=binary)
    return (folder / "whole.mdl").read_bytes()


def archive(folder: Path, **options) -> bytes:
    rng = np.random.default_rng(0)
    kaldiio.save_ark(str(folder / "whole.ark"), {f"u{i}": rng.normal(size=(9, 3)) for i in range(3)}, **options)
    return (folder / "whole.ark").read_bytes()


def alignment(folder: Path, *, text: bool) -> bytes:
    if text:
        return b"u1 1 2 3\nu2 4 5\n"
    kaldiio.save_ark(str(folder / "whole.ark"), {"u1": np.arange(9, dtype=np.int32)})
    return (folder / "whole.ark").read_bytes()


def script(folder: Path) -> bytes:
    archive(folder)
    return b"u0 whole.ark:3\nu1 whole.ark:3[0:4]\nu2 whole.ark:3[1:2,0:1]\n"


def manifest(folder: Path) -> bytes:
    features = {
        "type": "fbank", "num_frames": 9, "num_features": 3, "frame_shift": 0.01, "sampling_rate": 8000, "start": 0,
        "duration": 0.09, "storage_type": "numpy_files", "storage_path": "f", "storage_key": "k.npy", "channels": 0,
    }  # fmt: skip
    cut = {"id": "c", "start": 0, "duration": 0.09, "channel": 0, "supervisions": [], "features": features}
    return (json.dumps(cut | {"type": "MonoCut"}) + "\n").encode()


def read_manifest(path: Path) -> None:
    def drop(name: str, reason: str) -> None:
        raise UtteranceError(reason)

    list(Manifests(path, None, None).read(0, 10, lambda name: True, Items(Locations(path.parent)), drop))


def read_model(path: Path) -> None:
    to_nnet2(load(path), None, path)


def read_script(path: Path) -> None:
    script = Script(path, Locations(path.parent))
    for key in script.entries:
        script.read(key)


def read_graph(path: Path, num_ids: int = 60) -> None:
    (path.parent / "words.txt").write_text("".join(f"w{i} {i}\n" for i in range(15)))
    path.rename(path.parent / "HCLG.fst")
    prepare_graph(path.parent, np.arange(-1, num_ids, dtype=np.int32), path.parent / "g.fst")


def read_options(path: Path) -> None:
    CmvnOptions.parse(f"--config={path.name}", "cmvn_opts", Locations(path.parent))


def read_specifier(path: Path) -> None:
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    with contextlib.suppress(DataError):
        Rspecifier.parse(text)
    Wspecifier.parse(text)


READERS: dict[str, tuple[str, Callable[[Path], bytes], Callable[[Path], object]]] = {
    "nnet2": ("m.mdl", lambda f: nnet2(f, binary=True), read_model),
    "nnet2 text": ("m.mdl", lambda f: nnet2(f, binary=False), read_model),
    "transitions": ("m.mdl", lambda f: nnet2(f, binary=True)[:800], read_transition_model),
    "matrices": ("a.ark", archive, lambda p: list(read_archive(p, matrix))),
    "compressed": ("a.ark", lambda f: archive(f, compression_method=2), lambda p: list(read_archive(p, matrix))),
    "text": ("a.ark", lambda f: archive(f, text=True), lambda p: list(read_archive(p, matrix))),
    "alignment": ("a.ark", lambda f: alignment(f, text=False), lambda p: list(read_archive(p, integers))),
    "zipped": ("a.gz", lambda f: gzip.compress(alignment(f, text=True)), lambda p: list(read_archive(p, integers))),
    "text alignment": ("a.ark", lambda f: alignment(f, text=True), lambda p: list(read_archive(p, integers))),
    "script": ("a.scp", script, read_script),
    "table": ("t", lambda f: b"one 1\ntwo 2 3\n", lambda p: list(read_lines(p))),
    "graph": ("g", lambda f: digit_loop(), read_graph),
    "options": ("cmvn.conf", lambda f: b"# CMVN\n--norm-means=true\n--norm-vars=true --skip-dims=1:2\n", read_options),
    "specifier": ("t", lambda f: b"ark,scp,t:out.ark,out.scp", read_specifier),
    "manifest": ("c.jsonl", manifest, read_manifest),
}


# Files of Kaldi's own, relative to the directory of recorded numbers.
REAL: dict[str, tuple[str, Callable[[Path], object]]] = {
    "fsdd/exp/nnet/1.mdl": ("m.mdl", read_model),
    "fsdd/exp/tri1_ali_test/final.mdl": ("m.mdl", read_transition_model),
    "fsdd/exp/tri1_ali_test/ali.2.gz": ("ali.gz", lambda p: list(read_archive(p, integers))),
    "golden/pdf_ids_test.ark": ("a.ark", lambda p: list(read_archive(p, integers))),
    "fsdd/data/test/cmvn.ark": ("a.ark", lambda p: list(read_archive(p, matrix))),
    "fsdd/data/test/feats.ark": ("a.ark", lambda p: list(read_archive(p, matrix))),
    "fsdd/data/test/feats.scp": ("a.scp", lambda p: Script(p, Locations(p.parent))),
    "fsdd/exp/graph/HCLG.fst": ("g", lambda p: read_graph(p, 300)),
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("number", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_files(tmp_path: Path, kind: str, number: int) -> None:
    name, make, read = READERS[kind]
    check_damaged(make(tmp_path), tmp_path / name, read, number)


@pytest.mark.parametrize("file", REAL)
@pytest.mark.parametrize("number", [10, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_files_of_kaldi(kaldi: Path, tmp_path: Path, file: str, number: int) -> None:
    name, read = REAL[file]
    check_damaged((kaldi / file).read_bytes(), tmp_path / name, read, number)


def check_damaged(whole: bytes, path: Path, read: Callable[[Path], object], number: int) -> None:
    """Damages a file in `number` ways and checks that each is read or raises `NgsgdError` with one line."""
    path.write_bytes(whole)
    read(path)  # the undamaged file is readable
    messages = []

    @settings(max_examples=number, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
    @given(st.integers(0, 2**63))
    def check(seed: int) -> None:
        path.write_bytes(mutate(whole, random.Random(seed)))
        try:
            read(path)
        except NgsgdError as e:
            messages.append(str(e))

    tracemalloc.start()
    check()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**25 + 20 * len(whole)
    assert messages
    assert [message for message in messages if "\n" in message or len(message) > 1000] == []
