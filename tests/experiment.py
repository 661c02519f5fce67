"""Writes a Kaldi experiment of recorded digits: data directories, alignments with their model, and a graph."""

from __future__ import annotations

import gzip
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import kaldiio
import numpy as np

from ngsgd.data.corpora import Corpus
from ngsgd.data.corpora.digits import WORDS, DigitsCorpus
from ngsgd.data.corpus import CorpusInfo, Subset, read_info
from ngsgd.data.parts import assemble, prepare_part
from ngsgd.kaldi.graph import ARC, STATE
from ngsgd.kaldi.output import Output
from ngsgd.kaldi.transition import HmmState, TransitionModel, write_transitions

STATES = 3  # per word


def prepare(corpus: Corpus, directory: Path, num_parts: int = 1, max_bad_share: float = 0.01) -> CorpusInfo:
    """Prepares a corpus in parts, as the workflow does."""
    parts = [directory / f"part{part}of{num_parts}" for part in range(num_parts)]
    for part, folder in enumerate(parts):
        prepare_part(corpus, folder, part, num_parts)
    assemble(parts, directory, max_bad_share)
    for folder in parts:
        shutil.rmtree(folder)
    return read_info(directory)


def digit_transitions() -> TransitionModel:
    """Returns a model in which word p is a phone whose state s has transition-ids 6 p + 2 s + 1 (self-loop) and + 2."""
    half = np.float32(0.5)
    entry = (*(HmmState(s, s, ((s, half), (s + 1, half))) for s in range(STATES)), HmmState(-1, -1, ()))
    rows = [(p + 1, s, STATES * p + s, STATES * p + s) for p in range(len(WORDS)) for s in range(STATES)]
    ids = [pdf for _, _, pdf, _ in rows for _ in range(2)]
    return TransitionModel(
        phones=np.arange(1, len(WORDS) + 1, dtype=np.int32),
        phone_entries=np.array([-1] + len(WORDS) * [0], np.int32),
        entries=(entry,),
        tuples=np.array(rows, np.int32),
        log_probs=np.array([0.0] + len(ids) * [np.log(0.5)], np.float32),
        pdf_ids=np.array([-1, *ids], np.int32),
        id_phones=np.array([0, *(phone for phone, *_ in rows for _ in range(2))], np.int32),
    )


def transition_id(word: int, state: int) -> int:
    """Returns the transition-id of a self-loop in `digit_transitions`; words and states count from 0."""
    return 2 * (STATES * word + state) + 1


def digit_loop(label: Callable[[int, int], int] = transition_id) -> bytes:
    """Returns a graph that accepts one or more words: start state 0, and a state for each HMM state of each word.

    Args:
        label: input label of a word's state.
    """
    arcs, states = [(label(p, 0), p + 1, 2.3, 1 + STATES * p) for p in range(len(WORDS))], []
    states.append((np.inf, 0, len(arcs)))
    for p in range(len(WORDS)):
        for s in range(STATES):
            state = 1 + STATES * p + s
            last = s == STATES - 1
            states.append((0.0 if last else np.inf, len(arcs), 2))
            following = (0, 0, 5.0, 0) if last else (label(p, s + 1), 0, 0.1, state + 1)
            arcs += [(label(p, s), 0, 0.1, state), following]
    header = struct.pack("<i", 2125659606)
    header += b"".join(struct.pack("<i", len(name)) + name for name in (b"const", b"standard"))
    header += struct.pack("<iiQqqq", 2, 0, 1, 0, len(states), len(arcs))
    rows = [(final, begin, number, 0, 0) for final, begin, number in states]
    return header + np.array(rows, STATE).tobytes() + np.array(arcs, ARC).tobytes()


def make_experiment(root: Path, digits: Path) -> dict[str, object]:
    """Writes the experiment and returns the settings that name its parts."""
    prepare(DigitsCorpus(digits, STATES, 30, 30), root / "corpus")
    out = Output(binary=True)
    write_transitions(digit_transitions(), out)
    assert len(read_info(root / "corpus").class_counts) == STATES * len(WORDS)
    for side, subsets in (("train", ("train", "valid")), ("test", ("test",))):
        data, ali = root / "data" / side, root / "exp" / f"ali_{side}"
        data.mkdir(parents=True)
        ali.mkdir(parents=True)
        features, lines, texts = {}, [], []
        for name in subsets:
            subset = Subset(root / "corpus", name)
            for i, utterance in enumerate(subset.names):
                x, pdfs = subset.utterance(i)
                features[utterance] = np.array(x)
                # The last frame of a state has the id of its forward transition, the others that of its self-loop.
                ids = 2 * pdfs + 1 + (np.diff(pdfs, append=-1) != 0)
                lines.append(f"{utterance} {' '.join(map(str, ids))} \n")
                texts.append(f"{utterance} {subset.texts[i].upper()}\n")
                if name == "valid":
                    with open(root / "valid", "a") as f:
                        f.write(utterance + "\n")
        kaldiio.save_ark(str(data / "feats.ark"), features, scp=str(data / "feats.scp"), compression_method=3)
        (data / "feats.scp").write_text((data / "feats.scp").read_text().replace(f"{root}/", ""))
        (data / "text").write_text("".join(texts))
        (ali / "ali.1.gz").write_bytes(gzip.compress("".join(lines[: len(lines) // 2]).encode()))
        (ali / "ali.2.gz").write_bytes(gzip.compress("".join(lines[len(lines) // 2 :]).encode()))
        (ali / "final.mdl").write_bytes(out.bytes())
    graph = root / "exp" / "graph"
    graph.mkdir()
    (graph / "HCLG.fst").write_bytes(digit_loop())
    words = "".join(f"{word.upper()} {number}\n" for number, word in enumerate(WORDS, start=1))
    (graph / "words.txt").write_text("<eps> 0\n" + words)
    return {
        "corpus": "kaldi",
        "experiment": str(root),
        "train_data": "data/train",
        "test_data": "data/test",
        "train_alignment": "exp/ali_train",
        "test_alignment": "exp/ali_test",
        "valid_utterances": "valid",
        "cmvn_opts": "--norm-means=false",
        "graph": "exp/graph",
    }
