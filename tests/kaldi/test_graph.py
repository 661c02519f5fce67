"""Tests of decoding graphs: checks, relabelling, decoding, and damaged files."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from ngsgd.errors import DataError
from ngsgd.kaldi import decoder as decoder_module
from ngsgd.kaldi.decoder import Decoder
from ngsgd.kaldi.graph import ARC, STATE, add_word_ins_penalty, num_inputs, prepare_graph
from ngsgd.kaldi.tables import matrix, read_archive, read_lines
from ngsgd.kaldi.transition import read_transition_model

INFINITY = float("inf")
# Two words of two pdfs each, with self-loops: transition-ids 1-4 belong to "one", 5-8 to "two"; odd ids are self-loops.
PDF_IDS = np.array([-1, 0, 0, 1, 1, 2, 2, 3, 3], np.int32)
STATES = [(INFINITY, 0, 2), (INFINITY, 2, 2), (0.0, 4, 2), (INFINITY, 6, 2), (0.0, 8, 2)]
ARCS = [
    (1, 1, 0.1, 1), (5, 2, 0.1, 3),
    (1, 0, 0.1, 1), (3, 0, 0.1, 2),
    (3, 0, 0.1, 2), (0, 0, 0.5, 0),
    (5, 0, 0.1, 3), (7, 0, 0.1, 4),
    (7, 0, 0.1, 4), (0, 0, 0.5, 0),
]  # fmt: skip


def const_fst(states=STATES, arcs=ARCS, *, start=0, kind=b"const", flags=0, num_states=None) -> bytes:
    """Returns the bytes of a graph file."""
    header = struct.pack("<i", 2125659606)
    header += b"".join(struct.pack("<i", len(name)) + name for name in (kind, b"standard"))
    count = len(states) if num_states is None else num_states
    header += struct.pack("<iiQqqq", 2, flags, 0x65A5A5660001, start, count, len(arcs))
    rows = [(final, begin, number, 0, 0) for final, begin, number in states]
    return header + np.array(rows, STATE).tobytes() + np.array(arcs, ARC).tobytes()


def folder(path: Path, data: bytes, words: str = "<eps> 0\none 1\ntwo 2\n") -> Path:
    path.mkdir(exist_ok=True)
    (path / "HCLG.fst").write_bytes(data)
    (path / "words.txt").write_text(words)
    return path


def likelihoods(*pdfs: int) -> np.ndarray:
    frames = np.full((len(pdfs), 4), -20.0, np.float32)
    frames[np.arange(len(pdfs)), pdfs] = -1.0
    return frames


def test_decoded_words(tmp_path: Path) -> None:
    graph = folder(tmp_path / "graph", const_fst())
    prepare_graph(graph, PDF_IDS, tmp_path / "g.fst")
    assert num_inputs(tmp_path / "g.fst") == 4
    with Decoder(tmp_path / "g.fst", graph, 15.0, 7000) as decoder:
        assert decoder.decode("u", likelihoods(0, 0, 1, 2, 3, 3), [1.0, 0.1]) == [(["one", "two"], True)] * 2
        assert decoder.decode("u", likelihoods(2, 3), [1.0]) == [(["two"], True)]
        assert decoder.decode("u", likelihoods(2), [1.0]) == [(["two"], False)]  # no word has a single frame
        # With so small an acoustic weight the graph's costs decide, and a change of word costs more.
        assert decoder.decode("u", likelihoods(0, 0, 1, 2, 3, 3), [0.001]) == [(["one"], True)]


def test_word_insertion_penalty_is_a_cost_of_each_word(tmp_path: Path) -> None:
    graph = folder(tmp_path / "graph", const_fst())
    prepare_graph(graph, PDF_IDS, tmp_path / "g.fst")
    found = []
    for penalty in (0.0, 40.0, 70.0):
        add_word_ins_penalty(tmp_path / "g.fst", penalty, tmp_path / "p.fst")
        with Decoder(tmp_path / "p.fst", graph, 500.0, 7000) as decoder:
            results = decoder.decode("u", likelihoods(0, 0, 1, 2, 3, 3), [1.0, 2.0])
        found.append([len(words) for words, _ in results])
    # The second word explains three frames, which are worth 57 at a scale of 1 and 114 at 2.
    assert found == [[2, 2], [2, 2], [1, 2]]


NEGATIVE_CYCLE = [*ARCS[:5], (0, 0, -1.0, 2), *ARCS[6:]]  # an epsilon loop of negative weight
DAMAGED = [
    (const_fst(arcs=NEGATIVE_CYCLE), "a cycle without input and of negative weight"),
    (const_fst()[:-1], "truncated"),
    (const_fst()[:40], "truncated"),
    (b"", "truncated"),
    (b"\0" * 100, "not a graph"),
    (const_fst(kind=b"vector"), "fstconvert --fst_type=const"),
    (const_fst(flags=1), "without symbol tables"),
    (const_fst(num_states=2**40), "truncated"),
    (const_fst(num_states=-1), "truncated"),
    (const_fst(start=5), "point beyond"),
    (const_fst(start=-1), "point beyond"),
    (const_fst(states=[*STATES[:4], (0.0, 8, 3)]), "point beyond"),
    (const_fst(states=[*STATES[:4], (0.0, 2**32 - 1, 2)]), "point beyond"),
    (const_fst(states=[*STATES[:4], (float("nan"), 8, 2)]), "not a number"),
    (const_fst(arcs=[*ARCS[:9], (0, 0, 0.5, 5)]), "point beyond"),
    (const_fst(arcs=[*ARCS[:9], (0, 0, 0.5, -1)]), "point beyond"),
    (const_fst(arcs=[*ARCS[:9], (0, 0, float("nan"), 0)]), "not a number"),
    (const_fst(arcs=[*ARCS[:9], (-3, 0, 0.5, 0)]), "point beyond"),
    (const_fst(arcs=[*ARCS[:9], (9, 0, 0.5, 0)]), "transition-id 9, but the model of the alignments has 8"),
    (const_fst(arcs=[*ARCS[:9], (0, 3, 0.5, 0)]), "word 3 is not in"),
]


@pytest.mark.parametrize(("data", "message"), DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_graph_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"HCLG.fst.*{message}"):
        prepare_graph(folder(tmp_path / "graph", data), PDF_IDS, tmp_path / "g.fst")
    assert not (tmp_path / "g.fst").exists()


def test_states_and_arcs_may_be_aligned(tmp_path: Path) -> None:
    data, arcs_bytes = const_fst(flags=4), len(ARCS) * ARC.itemsize
    states, arcs = data[65:-arcs_bytes], data[-arcs_bytes:]
    aligned = data[:65].ljust(80, b"\0") + states.ljust(-(-len(states) // 16) * 16, b"\0") + arcs
    graph = folder(tmp_path / "graph", aligned)
    prepare_graph(graph, PDF_IDS, tmp_path / "g.fst")
    with Decoder(tmp_path / "g.fst", graph, 15.0, 7000) as decoder:
        assert decoder.decode("u", likelihoods(0, 1, 2, 3), [1.0]) == [(["one", "two"], True)]


def test_malformed_log_likelihoods_are_refused(tmp_path: Path) -> None:
    graph = folder(tmp_path / "graph", const_fst())
    prepare_graph(graph, PDF_IDS, tmp_path / "g.fst")
    with Decoder(tmp_path / "g.fst", graph, 15.0, 7000) as decoder:
        for bad in (likelihoods(0, 1)[:, :3], likelihoods(), likelihoods(0, 1) * np.nan):
            with pytest.raises(DataError, match="utterance u: log-likelihoods"):
                decoder.decode("u", bad, [1.0])


def test_crash_of_the_decoder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is damaged after the check, so that the decoder crashes."""
    graph = folder(tmp_path / "graph", const_fst())
    prepare_graph(graph, PDF_IDS, tmp_path / "g.fst")
    monkeypatch.setattr(decoder_module, "num_inputs", lambda path: 4)
    (tmp_path / "g.fst").write_bytes(const_fst(arcs=[(i and 1, o, w, 2**30) for i, o, w, _ in ARCS]))
    with (
        Decoder(tmp_path / "g.fst", graph, 15.0, 7000) as decoder,
        pytest.raises(DataError, match="utterance u: the decoder ended with status -"),
    ):
        decoder.decode("u", likelihoods(0, 1, 2, 3), [1.0])


def test_endless_search_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the check the graph gets an epsilon cycle of negative cost, so that the search does not end."""
    monkeypatch.setattr(decoder_module, "TIMEOUT", 3.0)
    monkeypatch.setattr(decoder_module, "num_inputs", lambda path: 4)
    graph = folder(tmp_path / "graph", const_fst())
    (tmp_path / "g.fst").write_bytes(const_fst(arcs=NEGATIVE_CYCLE))
    with (
        Decoder(tmp_path / "g.fst", graph, 15.0, 7000) as decoder,
        pytest.raises(DataError, match=r"utterance u: the decoder has not come to an end|ended with status"),
    ):
        decoder.decode("u", likelihoods(0, 0, 0, 0), [1.0])


def test_negative_weights_are_allowed(tmp_path: Path) -> None:
    arcs = [*ARCS[:5], (0, 0, -0.5, 0), *ARCS[6:]]  # leads to the start, which has no arc without input
    prepare_graph(folder(tmp_path / "graph", const_fst(arcs=arcs)), PDF_IDS, tmp_path / "g.fst")


def test_graph_and_log_likelihoods_of_kaldi(kaldi: Path, tmp_path: Path) -> None:
    graph = kaldi / "fsdd/exp/graph"
    prepare_graph(graph, read_transition_model(kaldi / "fsdd/exp/tri1_ali_train/final.mdl").pdf_ids, tmp_path / "g.fst")
    texts = dict(read_lines(kaldi / "fsdd/data/test/text"))
    with Decoder(tmp_path / "g.fst", graph, 15.0, 7000) as decoder:
        for name, log_likelihoods in read_archive(kaldi / "golden/loglikes_final_10utts.ark", matrix):
            assert decoder.decode(name, log_likelihoods, [0.1]) == [(texts[name].split(), True)]
