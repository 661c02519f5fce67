"""Kaldi's decoding graph ``HCLG.fst``: every arc is checked, since the decoder library does not check any number.

The file has OpenFst's "const" type: a header, an array of states, an array of arcs.

Source: ``fst/const-fst.h`` and ``fst/fst.h`` of OpenFst.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ngsgd.errors import DataError
from ngsgd.files import atomic_write, require_regular_file
from ngsgd.kaldi.tables import read_lines

MAGIC = 2125659606
ALIGNED = 4  # flag: states and arcs start at multiples of 16 bytes
MAX_DEPTH = 10_000  # longest path of arcs without input
EXPANDED = 1  # property of every const FST; the other stored properties do not hold after relabelling
STATE = np.dtype(
    [("final", "<f4"), ("begin", "<u4"), ("arcs", "<u4"), ("input_epsilons", "<u4"), ("output_epsilons", "<u4")]
)
ARC = np.dtype([("input", "<i4"), ("output", "<i4"), ("weight", "<f4"), ("next", "<i4")])


def prepare_graph(graph: Path, pdf_ids: npt.NDArray[np.int32], output: Path) -> None:
    """Writes a graph for `ngsgd.kaldi.decoder`, with input labels pdf-id + 1 instead of transition-ids.

    Args:
        graph: directory with ``HCLG.fst`` and ``words.txt``.
        pdf_ids: (transition-ids + 1,) pdf-id of each transition-id.
        output: file to write.

    Raises:
        DataError: the graph is damaged, of another type, or was made with another model.
        OSError: the file cannot be written.
    """
    path = graph / "HCLG.fst"
    data = _read(path)
    properties_at, _, arcs, arcs_at = _parse(data, path)
    if len(arcs) and arcs["input"].max() >= len(pdf_ids):
        raise DataError(
            f"{path}: transition-id {arcs['input'].max()}, but the model of the alignments has {len(pdf_ids) - 1}; "
            "take graph and alignments from one experiment"
        )
    words = read_words(graph)
    if len(arcs) and (unknown := set(np.unique(arcs["output"]).tolist()) - words.keys() - {0}):
        raise DataError(f"{path}: word {min(unknown)} is not in {graph / 'words.txt'}")
    relabelled = arcs.copy()
    relabelled["input"] = np.where(arcs["input"] == 0, 0, pdf_ids[arcs["input"]] + 1)
    data[arcs_at : arcs_at + arcs.nbytes] = relabelled.tobytes()
    struct.pack_into("<Q", data, properties_at, EXPANDED)
    with atomic_write(output) as temporary:
        temporary.write_bytes(data)


def add_word_ins_penalty(graph: str | os.PathLike[str], penalty: float, output: Path) -> None:
    """Writes a graph in which each word costs more; source: ``latbin/lattice-add-penalty.cc``.

    Args:
        graph: file written by `prepare_graph`.
        penalty: added to the weight of each arc with a word.
        output: file to write.

    Raises:
        DataError: the graph is damaged or of another type.
        OSError: the file cannot be written.
    """
    data = _read(graph)
    _, _, arcs, arcs_at = _parse(data, graph)
    costlier = arcs.copy()
    costlier["weight"] += np.where(arcs["output"] == 0, 0.0, penalty).astype(np.float32)
    data[arcs_at : arcs_at + arcs.nbytes] = costlier.tobytes()
    with atomic_write(output) as temporary:
        temporary.write_bytes(data)


def num_inputs(path: str | os.PathLike[str]) -> int:
    """Checks a graph and returns its largest input label.

    Raises:
        DataError: the graph is damaged or of another type.
    """
    _, _, arcs, _ = _parse(_read(path), path)
    return int(arcs["input"].max(initial=0))


def read_words(graph: Path) -> dict[int, str]:
    """Reads ``words.txt``: the words by their numbers.

    Raises:
        DataError: the file is missing or malformed.
    """
    path = graph / "words.txt"
    try:
        return {int(number): word for word, number in read_lines(path)}
    except ValueError as e:
        raise DataError(f"{path}: expected lines of a word and its number ({e})") from None


def _has_no_negative_cycle(
    sources: npt.NDArray[np.int64], targets: npt.NDArray[np.int32], weights: npt.NDArray[np.float64], num_states: int
) -> bool:
    """Returns whether the arcs form no cycle of negative weight: then the lowest costs converge.

    Source: the Bellman-Ford algorithm, stopped at `MAX_DEPTH`, which Kaldi's graphs do not reach.
    """
    costs = np.zeros(num_states)
    for _ in range(min(num_states, MAX_DEPTH) + 1 if (weights < 0).any() else 0):
        before = costs.copy()
        np.minimum.at(costs, targets, before[sources] + weights)
        if np.array_equal(before, costs):
            return True
    return not (weights < 0).any()


def _read(path: str | os.PathLike[str]) -> bytearray:
    try:
        require_regular_file(path)
        return bytearray(Path(path).read_bytes())
    except OSError as e:
        raise DataError(f"{os.fspath(path)}: {e.strerror}") from None


def _parse(
    data: bytearray, path: str | os.PathLike[str]
) -> tuple[int, npt.NDArray[np.void], npt.NDArray[np.void], int]:
    """Parses and checks a graph.

    Returns:
        Offset of the properties, the states, the arcs, and offset of the arcs.

    Raises:
        DataError: the graph is damaged or of another type.
    """

    def error(reason: str) -> DataError:
        return DataError(f"{os.fspath(path)}: {reason}; make the graph again with mkgraph.sh")

    def string(at: int) -> tuple[bytes, int]:
        (length,) = struct.unpack_from("<i", data, at)
        if not 0 <= length <= 64:
            raise error("not a graph")
        return bytes(data[at + 4 : at + 4 + length]), at + 4 + length

    try:
        if struct.unpack_from("<i", data, 0) != (MAGIC,):
            raise error("not a graph")
        kind, at = string(4)
        arc_kind, at = string(at)
        version, flags, _, start, num_states, num_arcs = struct.unpack_from("<iiQqqq", data, at)
    except struct.error:
        raise error("the file is truncated") from None
    if kind != b"const" or arc_kind != b"standard" or version not in (1, 2) or flags & ~ALIGNED:
        raise DataError(
            f"{os.fspath(path)}: a graph of type {kind!r} with {arc_kind!r} arcs (version {version}, flags {flags}); "
            "expected const with standard arcs and without symbol tables; use fstconvert --fst_type=const"
        )

    def array(at: int, dtype: np.dtype[np.void], length: int) -> tuple[npt.NDArray[np.void], int]:
        if version == 1 or flags & ALIGNED:
            at = -(-at // 16) * 16
        if length < 0 or at + length * dtype.itemsize > len(data):
            raise error("the file is truncated")
        return np.frombuffer(bytes(data[at : at + length * dtype.itemsize]), dtype), at

    states, states_at = array(at + struct.calcsize("<iiQqqq"), STATE, num_states)
    arcs, arcs_at = array(states_at + states.nbytes, ARC, num_arcs)
    ends = states["begin"].astype(np.int64) + states["arcs"]
    counts = states["arcs"].astype(np.int64)
    if not 0 <= start < num_states or counts.sum() != num_arcs or (ends != np.cumsum(counts)).any():
        raise error("its states point beyond its end")
    if ((arcs["next"] < 0) | (arcs["next"] >= num_states) | (arcs["input"] < 0) | (arcs["output"] < 0)).any():
        raise error("its arcs point beyond its end")
    if np.isnan(states["final"]).any() or not np.isfinite(arcs["weight"]).all():
        raise error("a weight that is not a number")
    epsilon = arcs["input"] == 0
    sources = np.repeat(np.arange(num_states), counts)[epsilon]
    if not _has_no_negative_cycle(
        sources, arcs["next"][epsilon], arcs["weight"][epsilon].astype(np.float64), num_states
    ):
        raise error("a cycle without input and of negative weight, on which the search would not end")
    return at + 8, states, arcs, arcs_at
