"""Kaldi's transition model, which maps the transition-ids of alignments and graphs to pdf-ids.

Source: ``hmm/transition-model.cc``, ``hmm/hmm-topology.cc``.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ngsgd.errors import DataError, ModelError
from ngsgd.kaldi.output import Output
from ngsgd.kaldi.stream import Array, Input, open_input

NO_PDF = -1
MAX_PDFS = 1_000_000


@dataclass(frozen=True)
class HmmState:
    """A state of a phone's topology.

    Attributes:
        forward_class, self_loop_class: pdf-classes of the transitions out of the state and of its self-loop, which are
            the same in usual topologies; `NO_PDF` for non-emitting states.
        transitions: destination and probability of each transition.
    """

    forward_class: int
    self_loop_class: int
    transitions: tuple[tuple[int, np.float32], ...]


@dataclass(frozen=True)
class TransitionModel:
    """A transition model.

    Attributes:
        phones: phone numbers of the topology, ascending.
        phone_entries: (largest phone + 1,) index into ``entries`` for each phone number, or -1.
        entries: the topologies.
        tuples: (transition states, 4) int32: phone, HMM state, forward pdf-id, self-loop pdf-id.
        log_probs: (transition-ids + 1,) log-probabilities; transition-ids count from 1, the first element is unused.
        pdf_ids: (transition-ids + 1,) int32, pdf-id of each transition-id; the first is -1.
        id_phones: (transition-ids + 1,) int32, phone of each transition-id.
    """

    phones: npt.NDArray[np.int32]
    phone_entries: npt.NDArray[np.int32]
    entries: tuple[tuple[HmmState, ...], ...]
    tuples: npt.NDArray[np.int32]
    log_probs: Array
    pdf_ids: npt.NDArray[np.int32]
    id_phones: npt.NDArray[np.int32]

    @property
    def num_pdfs(self) -> int:
        return int(self.pdf_ids.max()) + 1

    def to_pdfs(self, transition_ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Converts the transition-ids of an alignment to pdf-ids.

        Raises:
            DataError: the model does not have one of the transition-ids.
        """
        outside = (transition_ids < 1) | (transition_ids >= len(self.pdf_ids))
        if outside.any():
            raise DataError(
                f"transition-id {transition_ids[outside][0]} is not of the model, which has 1 - {len(self.pdf_ids) - 1}"
            )
        return self.pdf_ids[transition_ids]

    def check_phones(self, phones: list[int]) -> None:
        """Checks that the model has some phones.

        Raises:
            DataError: it does not have one of them.
        """
        for phone in phones:
            if phone not in self.phones:
                raise DataError(f"silence phone {phone} is not in the topology of the model")


def read_transition_model(path: str | os.PathLike[str]) -> TransitionModel:
    """Reads the transition model at the start of a model file; the GMM or network after it is not read.

    Raises:
        DataError: the file does not start with a valid transition model.
    """
    with open_input(path) as source:
        source.start()
        return read_transitions(source)


def read_transitions(source: Input) -> TransitionModel:
    """Reads a transition model, in the new or the old form, binary or text.

    Raises:
        NgsgdError: the model is malformed; raised as the error type of ``source``.
    """
    source.expect("<TransitionModel>", "<Topology>")
    phones, phone_entries, entries = (_read_topology if source.binary else _read_topology_text)(source)
    form = source.token()
    if form not in ("<Triples>", "<Tuples>"):
        source.fail(f"expected <Triples> or <Tuples>, found {form!r:.60}")
    rows = []
    for _ in range(_count(source)):
        row = [source.integer() for _ in range(3 if form == "<Triples>" else 4)]
        rows.append(row if len(row) == 4 else [*row, row[2]])
    tuples = np.array(rows, np.int32).reshape(-1, 4)
    source.expect("</" + form[1:], "<LogProbs>")
    log_probs = source.array(1).astype(np.float32)
    source.expect("</LogProbs>", "</TransitionModel>")
    states = []
    for phone, state, forward, self_loop in tuples.tolist():
        entry = int(phone_entries[phone]) if 0 < phone < len(phone_entries) else -1
        if not 0 <= entry < len(entries) or not 0 <= state < len(entries[entry]):
            source.fail(f"transition model: its topology has no state {state} of phone {phone}")
        if not 0 <= min(forward, self_loop) <= max(forward, self_loop) < MAX_PDFS:
            source.fail(f"transition model: pdf-ids {forward} and {self_loop} are not from 0 to {MAX_PDFS - 1}")
        states.append(entries[entry][state])
    # Checked before the lists are built, since a small file can declare a huge number of transitions.
    num_ids = sum(len(state.transitions) for state in states)
    if num_ids == 0 or num_ids != len(log_probs) - 1:
        source.fail(f"transition model: {num_ids} transitions, {len(log_probs) - 1} log-probabilities")
    pdf_ids, id_phones = [-1], [0]
    for (phone, number, forward, self_loop), hmm_state in zip(tuples.tolist(), states, strict=True):
        for target, _ in hmm_state.transitions:
            pdf_ids.append(self_loop if target == number else forward)
            id_phones.append(phone)
    arrays = np.array(pdf_ids, np.int32), np.array(id_phones, np.int32)
    return TransitionModel(phones, phone_entries, entries, tuples, log_probs, *arrays)


def write_transitions(model: TransitionModel, out: Output) -> None:
    """Writes a transition model as Kaldi 5.5 does: in the old form unless self-loops have separate pdf-classes."""
    plain = all(s.forward_class == s.self_loop_class for entry in model.entries for s in entry)
    out.token("<TransitionModel>")
    out.end_line()
    (_write_topology if out.binary else _write_topology_text)(model, plain, out)
    form = "Triples" if plain else "Tuples"
    out.token(f"<{form}>")
    out.integer(len(model.tuples))
    out.end_line()
    for row in model.tuples.tolist():
        for value in row[: 3 if plain else 4]:
            out.integer(value)
        out.end_line()
    out.token(f"</{form}>")
    out.end_line()
    out.token("<LogProbs>")
    out.end_line()
    out.array(model.log_probs)
    out.token("</LogProbs>")
    out.end_line()
    out.token("</TransitionModel>")
    out.end_line()


def transitions_to_text(model: TransitionModel) -> str:
    """Encodes a transition model as base64, for JSON."""
    out = Output(binary=True)
    write_transitions(model, out)
    return base64.b64encode(out.bytes()).decode("ascii")


def transitions_from_text(text: str, name: str | os.PathLike[str]) -> TransitionModel:
    """Decodes a transition model from `transitions_to_text`; errors call its file ``name``.

    Raises:
        ModelError: the text is malformed.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise ModelError(f"{os.fspath(name)}: the transition model in it is malformed") from None
    source = Input(io.BytesIO(data), f"{os.fspath(name)}: transition model", ModelError)
    source.start()
    return read_transitions(source)


def _count(source: Input) -> int:
    count = source.integer()
    if count < 0:
        source.fail(f"expected a count, found {count}")
    return count


def _read_topology(
    source: Input,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], tuple[tuple[HmmState, ...], ...]]:
    phones, phone_entries = source.integers(), source.integers()
    plain = (size := source.integer()) != -1
    entries = []
    for _ in range(size if plain else _count(source)):
        states = []
        for _ in range(_count(source)):
            forward = source.integer()
            self_loop = forward if plain else source.integer()
            transitions = tuple((source.integer(), np.float32(source.real())) for _ in range(_count(source)))
            states.append(HmmState(forward, self_loop, transitions))
        entries.append(tuple(states))
    source.expect("</Topology>")
    used = np.flatnonzero(phone_entries != -1)
    if not np.array_equal(used, phones) or not (phone_entries[phones] < len(entries)).all():
        source.fail("topology: its list of phones does not match its table of entries")
    return phones, phone_entries, tuple(entries)


def _read_topology_text(
    source: Input,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], tuple[tuple[HmmState, ...], ...]]:
    entry_of: dict[int, int] = {}
    entries: list[tuple[HmmState, ...]] = []
    while (token := source.token()) != "</Topology>":
        if token != "<TopologyEntry>":
            source.fail(f"expected <TopologyEntry>, found {token!r:.60}")
        source.expect("<ForPhones>")
        while (token := source.token()) != "</ForPhones>":
            # Bounded, since the table is as long as the largest phone number.
            if not token.isdecimal() or len(token) > 6 or not int(token) or int(token) in entry_of:
                source.fail(f"expected a phone number without an entry so far, found {token!r:.60}")
            entry_of[int(token)] = len(entries)
        entries.append(tuple(_read_states_text(source)))
    phones = np.array(sorted(entry_of), np.int32)
    phone_entries = np.full(int(phones[-1]) + 1 if len(phones) else 0, -1, np.int32)
    for phone, entry in entry_of.items():
        phone_entries[phone] = entry
    return phones, phone_entries, tuple(entries)


def _read_states_text(source: Input) -> list[HmmState]:
    states: list[HmmState] = []
    while (token := source.token()) != "</TopologyEntry>":
        if token != "<State>" or source.integer() != len(states):
            source.fail(f"expected <State> {len(states)}")
        forward = self_loop = NO_PDF
        token = source.token()
        if token == "<PdfClass>":
            forward = self_loop = source.integer()
            token = source.token()
        elif token == "<ForwardPdfClass>":
            forward = source.integer()
            source.expect("<SelfLoopPdfClass>")
            self_loop = source.integer()
            token = source.token()
        transitions = []
        while token == "<Transition>":
            transitions.append((source.integer(), np.float32(source.real())))
            token = source.token()
        if token != "</State>":
            source.fail(f"expected </State>, found {token!r:.60}")
        states.append(HmmState(forward, self_loop, tuple(transitions)))
    return states


def _write_topology(model: TransitionModel, plain: bool, out: Output) -> None:
    out.token("<Topology>")
    out.integers(model.phones)
    out.integers(model.phone_entries)
    if not plain:
        out.integer(-1)
    out.integer(len(model.entries))
    for entry in model.entries:
        out.integer(len(entry))
        for state in entry:
            out.integer(state.forward_class)
            if not plain:
                out.integer(state.self_loop_class)
            out.integer(len(state.transitions))
            for target, probability in state.transitions:
                out.integer(target)
                out.real(probability)
    out.token("</Topology>")


def _write_topology_text(model: TransitionModel, plain: bool, out: Output) -> None:
    out.token("<Topology>")
    out.end_line()
    for number, entry in enumerate(model.entries):
        out.token("<TopologyEntry>")
        out.end_line()
        out.token("<ForPhones>")
        out.end_line()
        for phone in model.phones.tolist():
            if model.phone_entries[phone] == number:
                out.integer(phone)
        out.end_line()
        out.token("</ForPhones>")
        out.end_line()
        for index, state in enumerate(entry):
            out.token("<State>")
            out.integer(index)
            if state.forward_class != NO_PDF:
                out.token("<PdfClass>" if plain else "<ForwardPdfClass>")
                out.integer(state.forward_class)
                if not plain:
                    out.token("<SelfLoopPdfClass>")
                    out.integer(state.self_loop_class)
            for target, probability in state.transitions:
                out.token("<Transition>")
                out.integer(target)
                out.real(probability)
            out.token("</State>")
            out.end_line()
        out.token("</TopologyEntry>")
        out.end_line()
    out.token("</Topology>")
    out.end_line()
