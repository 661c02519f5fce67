"""Decoding of log-likelihoods to words by ``kaldi-decoder``, in a separate process.

The C++ library does not check its input. If it crashes in spite of the checks here, the caller gets an error that names
the utterance.
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

TIMEOUT = 600.0  # seconds after which decoding of an utterance is given up


class Words(NamedTuple):
    """Decoding result of an utterance.

    Attributes:
        words: words of the best path; empty if there is no path.
        complete: whether the path ends in a final state of the graph; if not, it is the best partial path.
    """

    words: list[str]
    complete: bool


class Decoder:
    """A decoder, used as a context manager.

    Args:
        graph: file written by `ngsgd.kaldi.graph.prepare_graph`.
        words: directory with ``words.txt``.
        beam: search beam, in units of scaled log-likelihood.
        max_active: largest number of states kept at a frame.

    Raises:
        DataError: the graph or the table of words is damaged.
    """

    def __init__(self, graph: str | os.PathLike[str], words: Path, beam: float, max_active: int) -> None:
        self._graph, self._beam, self._max_active = os.fspath(graph), beam, max_active
        self._num_inputs = num_inputs(graph)
        self._words = read_words(words)

    def __enter__(self) -> Decoder:
        context = multiprocessing.get_context("spawn")
        self._connection, worker_end = context.Pipe()
        self._process = context.Process(
            target=_decode_requests, args=(worker_end, self._graph, self._beam, self._max_active), daemon=True
        )
        self._process.start()
        worker_end.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.kill()
        self._process.join()

    def decode(self, utterance: str, log_likelihoods: Array, scales: Sequence[float]) -> list[Words]:
        """Decodes an utterance with each of some acoustic scales.

        Args:
            utterance: name of the utterance, for errors.
            log_likelihoods: (T, C) float32, log-likelihood of each frame for each pdf-id.
            scales: factors for the log-likelihoods.

        Returns:
            A result for each scale.

        Raises:
            DataError: the log-likelihoods are not finite or do not match the graph, or the decoder crashed or hung.
        """
        frames, classes = log_likelihoods.shape
        if classes < self._num_inputs or frames == 0 or not np.isfinite(log_likelihoods).all():
            raise DataError(
                f"utterance {utterance}: log-likelihoods of {frames} frames x {classes} pdf-ids are not finite, or do "
                f"not match the graph, which has {self._num_inputs} pdf-ids; was it made with another model?"
            )
        try:
            self._connection.send((log_likelihoods.astype(np.float32), list(scales)))
            if not self._connection.poll(TIMEOUT):
                raise DataError(
                    f"utterance {utterance}: the decoder has not come to an end on {self._graph} in {TIMEOUT:g} s; "
                    "the graph may have a cycle without input; or lower beam and max_active"
                )
            results: list[tuple[list[int], bool]] = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise DataError(
                f"utterance {utterance}: the decoder ended with status {self._process.exitcode} on {self._graph}; "
                "the graph may be damaged, or there is too little memory: try a lower max_active"
            ) from None
        return [
            Words([self._words.get(label, f"#{label}") for label in labels], complete) for labels, complete in results
        ]


def _decode_requests(connection: Connection, path: str, beam: float, max_active: int) -> None:
    """Decodes requests until the connection is closed."""
    import kaldi_decoder
    import kaldifst

    graph = kaldifst.StdFst.read(path)  # must stay referenced: the decoder does not keep it alive
    decoder = kaldi_decoder.FasterDecoder(graph, kaldi_decoder.FasterDecoderOptions(beam=beam, max_active=max_active))
    while True:
        try:
            log_likelihoods, scales = connection.recv()
        except EOFError:
            return
        results: list[tuple[list[int], bool]] = []
        for scale in scales:
            decoder.decode(kaldi_decoder.DecodableCtc(np.float32(scale) * log_likelihoods))
            ok, lattice = decoder.get_best_path()
            labels = [int(o) for o in kaldifst.get_linear_symbol_sequence(lattice)[2]] if ok else []
            results.append((labels, bool(ok and decoder.reached_final())))
        connection.send(results)
