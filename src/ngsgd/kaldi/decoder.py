"""From log-likelihoods to words: ``kaldi-decoder`` at work in a process of its own.

The library is C++ that trusts its input; should it crash in spite of all checks, the process that asks gets an error
that names the utterance.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from ngsgd.errors import DataError
from ngsgd.kaldi.graph import num_inputs, read_words
from ngsgd.kaldi.stream import Array

PATIENCE = 600.0  # seconds that an utterance may take


class Words(NamedTuple):
    """What was decoded.

    Attributes:
        words: the best path's; empty where there is none.
        complete: whether the path ends where the graph does; otherwise the words are those up to the utterance's end.
    """

    words: list[str]
    complete: bool


class Decoder:
    """A decoder; use it in a ``with`` statement.

    Args:
        graph: file that `ngsgd.kaldi.graph.prepare_graph` wrote.
        words: directory with ``words.txt``.
        beam: of the search, in units of scaled log-likelihood.
        max_active: states kept at a frame.

    Raises:
        DataError: the graph or the table of words is damaged.
    """

    def __init__(self, graph: str | os.PathLike[str], words: Path, beam: float, max_active: int) -> None:
        self._graph, self._beam, self._max_active = os.fspath(graph), beam, max_active
        self._num_inputs = num_inputs(graph)
        self._words = read_words(words)

    def __enter__(self) -> Decoder:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self._graph, self._beam, self._max_active), daemon=True
        )
        self._process.start()
        theirs.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.kill()
        self._process.join()

    def decode(self, utterance: str, log_likelihoods: Array, scales: Sequence[float]) -> list[Words]:
        """The best words for an utterance, for each acoustic scale.

        Args:
            utterance: its name.
            log_likelihoods: (T, C) float32.
            scales: by which the log-likelihoods are multiplied.

        Returns:
            For each scale the words.

        Raises:
            DataError: the log-likelihoods are not those of the graph's pdf-ids, or the decoder crashed or hung.
        """
        frames, classes = log_likelihoods.shape
        if classes < self._num_inputs or frames == 0 or not np.isfinite(log_likelihoods).all():
            raise DataError(
                f"utterance {utterance}: log-likelihoods of {frames} frames x {classes} pdf-ids, or not finite; "
                f"the graph has {self._num_inputs} pdf-ids"
            )
        try:
            self._connection.send((log_likelihoods.astype(np.float32), list(scales)))
            if not self._connection.poll(PATIENCE):
                raise DataError(
                    f"utterance {utterance}: the decoder has not come to an end on {self._graph} in {PATIENCE:g} s; "
                    "the graph may have a cycle without input, or beam and max_active are too large"
                )
            found: list[tuple[list[int], bool]] = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise DataError(
                f"utterance {utterance}: the decoder ended with status {self._process.exitcode} on {self._graph}; "
                "the graph may be damaged, or memory short: try a lower max_active"
            ) from None
        return [
            Words([self._words.get(label, f"#{label}") for label in labels], complete) for labels, complete in found
        ]


def _serve(connection: Connection, path: str, beam: float, max_active: int) -> None:
    """Decodes what comes until nothing more does."""
    import kaldi_decoder
    import kaldifst

    graph = kaldifst.StdFst.read(path)  # the decoder does not keep it alive
    decoder = kaldi_decoder.FasterDecoder(graph, kaldi_decoder.FasterDecoderOptions(beam=beam, max_active=max_active))
    while True:
        try:
            log_likelihoods, scales = connection.recv()
        except EOFError:
            return
        found: list[tuple[list[int], bool]] = []
        for scale in scales:
            decoder.decode(kaldi_decoder.DecodableCtc(np.float32(scale) * log_likelihoods))
            ok, lattice = decoder.get_best_path()
            labels = [int(o) for o in kaldifst.get_linear_symbol_sequence(lattice)[2]] if ok else []
            found.append((labels, bool(ok and decoder.reached_final())))
        connection.send(found)
