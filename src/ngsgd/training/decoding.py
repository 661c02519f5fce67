"""Decoding with a graph, and word error rates at each language-model weight and word insertion penalty.

Source: ``steps/score_kaldi.sh``.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ngsgd.data.corpus import Subset, read_info, split_bounds
from ngsgd.errors import ConfigError, DataError
from ngsgd.files import write_text
from ngsgd.kaldi.decoder import Decoder, Words
from ngsgd.kaldi.graph import add_word_ins_penalty, prepare_graph
from ngsgd.kaldi.tables import split_words
from ngsgd.kaldi.transition import transitions_from_text
from ngsgd.network.model import load_model
from ngsgd.training.scoring import check_corpus_fits
from ngsgd.training.settings import Settings

DECODED = ("valid", "test")  # the point is chosen on the first


GAP = "***"  # where an aligned word is missing
OPERATIONS = {"C": "correct", "S": "substitutions", "I": "insertions", "D": "deletions"}


class ScoringPoint(NamedTuple):
    """A way of decoding that is tried.

    Attributes:
        lmwt: language-model weight; acoustic log-likelihoods are divided by it.
        word_ins_penalty: cost added for each word.
    """

    lmwt: int
    word_ins_penalty: float


class WordErrors(NamedTuple):
    """Word errors of several utterances; ``words`` counts the words of their references."""

    words: int
    insertions: int
    deletions: int
    substitutions: int

    @property
    def errors(self) -> int:
        return self.insertions + self.deletions + self.substitutions

    @property
    def rate(self) -> float:
        """The word error rate, as a fraction."""
        return self.errors / self.words


def make_graph(settings: Settings, data: Path, output: Path) -> None:
    """Writes the graph of the settings with pdf-ids as input labels, instead of transition-ids or classes from 1.

    Args:
        settings: of the run.
        data: folder of the prepared corpus, which holds the transition model.
        output: path of the graph to be written.

    Raises:
        DataError: the graph is damaged, or does not match the corpus's transition model.
        ConfigError: the run has no graph.
    """
    info = read_info(data)
    graph = settings.path("graph")
    if graph is None:
        raise ConfigError("graph: not set in the run's settings")
    if info.transition_model is not None:
        classes = transitions_from_text(info.transition_model, data / "corpus.json").pdf_ids
    elif settings.corpus != "kaldi":
        classes = np.arange(-1, len(info.class_counts), dtype=np.int32)
    else:
        raise DataError(
            "graph: its transition-ids mean nothing without the model of the alignments; train_alignment must be an "
            "alignment directory with final.mdl"
        )
    prepare_graph(graph, classes, output)


def scoring_points(settings: Settings) -> list[ScoringPoint]:
    """Returns the pairs of language-model weight and word insertion penalty that are tried."""
    return [
        ScoringPoint(weight, penalty)
        for penalty in settings.word_ins_penalties
        for weight in range(settings.min_lmwt, settings.max_lmwt + 1)
    ]


def decode(settings: Settings, model: Path, graph: Path, data: Path, split: int, output: Path) -> None:
    """Decodes one split of the validation and test utterances at each point, and writes the words (JSON).

    Args:
        settings: of the run.
        model: path of a model with priors.
        graph: path of the graph that `make_graph` wrote.
        data: folder of the prepared corpus.
        split: from 0.
        output: path of the words to be written.

    Raises:
        DataError: the corpus or the graph cannot be read, or the decoder crashed.
        ModelError: the model cannot be read, or has no priors.
        ConfigError: the run has no graph.
    """
    torch.set_num_threads(settings.threads)
    scored = load_model(model).eval()
    check_corpus_fits(scored, read_info(data), data)
    source = settings.path("graph")
    if source is None:
        raise ConfigError("graph: not set in the run's settings")
    decoded: dict[str, dict[str, list[Words]]] = {name: {} for name in DECODED}
    for penalty, points in itertools.groupby(scoring_points(settings), key=lambda point: point.word_ins_penalty):
        scales = [1.0 / point.lmwt for point in points]
        with _penalised(graph, penalty) as path, Decoder(path, source, settings.beam, settings.max_active) as decoder:
            for name in DECODED:
                subset = Subset(data, name)
                for i in range(*split_bounds(len(subset), split, settings.num_splits)):
                    # They are computed for each penalty, since those of all utterances may not fit into memory.
                    features = torch.from_numpy(np.array(subset.utterance(i)[0]))
                    log_likelihoods = scored.log_likelihoods(features).numpy()
                    words = decoder.decode(subset.names[i], log_likelihoods, scales)
                    decoded[name].setdefault(subset.names[i], []).extend(words)
    write_text(output, json.dumps(decoded, indent=0) + "\n")


@contextlib.contextmanager
def _penalised(graph: Path, penalty: float) -> Iterator[Path]:
    """Yields the path of a graph in which each word costs more by a penalty."""
    if not penalty:
        yield graph
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, graph.name)
        add_word_ins_penalty(graph, penalty, path)
        yield path


class Transcripts(NamedTuple):
    """Scored words of the utterances of a subset; the setting ``unscored_words`` names the others.

    Attributes:
        names, speakers: of the utterances.
        references: the words that were said.
        hypotheses: for each point the words that were decoded.
        incomplete: for each point the number of utterances whose best path does not end in a final state.
    """

    names: list[str]
    speakers: list[str]
    references: list[list[str]]
    hypotheses: list[list[list[str]]]
    incomplete: list[int]


def read_transcripts(settings: Settings, data: Path, splits: Sequence[Path]) -> dict[str, Transcripts]:
    """Reads the words that `decode` wrote for all splits, by subset.

    Args:
        settings: of the run.
        data: folder of the prepared corpus.
        splits: paths of the words of all splits.

    Raises:
        DataError: a file is malformed, or an utterance is missing.
    """
    decoded: dict[str, dict[str, Any]] = {name: {} for name in DECODED}
    for path in splits:
        try:
            part = json.loads(path.read_text(encoding="utf-8"))
            for name in DECODED:
                decoded[name] |= part[name]
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise DataError(f"{path}: not the words of a split ({e}); delete it and run again") from None
    unscored = set(settings.unscored_words)

    def kept(words: Iterable[str]) -> list[str]:
        return [word for word in words if word not in unscored]

    transcripts = {}
    for name in DECODED:
        subset = Subset(data, name)
        if missing := set(subset.names) - decoded[name].keys():
            raise DataError(f"{splits[0].parent}: {min(missing)} is not decoded; delete the folder, run again")
        results = [decoded[name][utterance] for utterance in subset.names]
        points = range(len(scoring_points(settings)))
        transcripts[name] = Transcripts(
            subset.names,
            subset.speakers,
            [kept(split_words(text)) for text in subset.texts],
            [[kept(result[k][0]) for result in results] for k in points],
            [sum(not result[k][1] for result in results) for k in points],
        )
    return transcripts


def score_points(settings: Settings, transcripts: Mapping[str, Transcripts]) -> list[dict[str, Any]]:
    """Scores decoded words at each point.

    Returns:
        For each point a dictionary with ``lmwt``, ``word_ins_penalty``, and for each subset ``word_error_rate``,
        ``words``, ``insertions``, ``deletions``, ``substitutions`` and ``incomplete`` (utterances whose best path does
        not end in a final state).

    Raises:
        DataError: a subset's references have no words.
    """
    rows = []
    for k, point in enumerate(scoring_points(settings)):
        row: dict[str, Any] = point._asdict()
        for name, subset in transcripts.items():
            if not any(subset.references):
                unscored = f", or all are unscored_words ({', '.join(settings.unscored_words)})"
                raise DataError(
                    f"word error rate: the references of the {name} subset have no words"
                    f"{unscored if settings.unscored_words else ''}; check the text of the data directories"
                )
            errors = word_errors(subset.references, subset.hypotheses[k])
            row[name] = {"word_error_rate": errors.rate} | errors._asdict() | {"incomplete": subset.incomplete[k]}
        rows.append(row)
    return rows


def word_errors(references: Sequence[list[str]], hypotheses: Sequence[list[str]]) -> WordErrors:
    """Counts the word errors of the hypotheses, by minimum edit distance from the references.

    Raises:
        DataError: the references have no words.
    """
    import kaldialign

    counts = [kaldialign.edit_distance(r, h) for r, h in zip(references, hypotheses, strict=True)]
    words = sum(map(len, references))
    if not words:
        raise DataError("word error rate: the references have no words; check the text of the data directory")
    return WordErrors(words, *(sum(c[kind] for c in counts) for kind in ("ins", "del", "sub")))


def best_point(rows: Sequence[dict[str, Any]]) -> int:
    """Returns the index of the point with the fewest errors on validation utterances.

    In a tie it is one with the lowest word insertion penalty, and of these the one with the middle weight.
    """
    best = min((row["valid"]["word_error_rate"], row["word_ins_penalty"]) for row in rows)
    tied = [k for k, row in enumerate(rows) if (row["valid"]["word_error_rate"], row["word_ins_penalty"]) == best]
    return tied[len(tied) // 2]


def write_scores(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes ``lm_weights.tsv``, one row for each point.

    Raises:
        OSError: the file cannot be written.
    """
    columns = ("word_error_rate", "insertions", "deletions", "substitutions", "incomplete", "words")
    table = [("lmwt", "word_ins_penalty", *(f"{name}_{column}" for name in DECODED for column in columns))]
    for row in rows:
        table.append((row["lmwt"], row["word_ins_penalty"], *(row[n][c] for n in DECODED for c in columns)))
    _write_table(path, table)


def write_alignments(test: Transcripts, point: int, per_utterance: Path, per_speaker: Path) -> None:
    """Writes how the words of each test utterance were recognised at one point, and the errors of each speaker.

    Source: ``utils/scoring/wer_per_utt_details.pl`` and ``wer_per_spk_details.pl``.

    Args:
        test: words of the test utterances.
        point: index of the point.
        per_utterance: table to be written, with columns utterance, speaker, reference and hypothesis (aligned, with
            ``***`` where a word is missing), operations (C, S, I or D for each position), and their numbers.
        per_speaker: table to be written, with columns speaker, utterances, words, correct, substitutions, insertions,
            deletions, word_error_rate (empty for a speaker without words).

    Raises:
        OSError: a file cannot be written.
    """
    import kaldialign

    rows: list[tuple[Any, ...]] = []
    speakers: dict[str, Counter[str]] = defaultdict(Counter)
    for name, speaker, reference, hypothesis in zip(
        test.names, test.speakers, test.references, test.hypotheses[point], strict=True
    ):
        pairs = kaldialign.align(reference, hypothesis, "")
        operations = ["I" if not r else "D" if not h else "C" if r == h else "S" for r, h in pairs]
        counts = Counter(operations)
        speakers[speaker] += counts + Counter(utterances=1, words=len(reference))
        aligned = [" ".join(pair[k] or GAP for pair in pairs) for k in range(2)]
        rows.append((name, speaker, *aligned, " ".join(operations), *(counts[o] for o in OPERATIONS)))
    columns = tuple(OPERATIONS.values())
    _write_table(per_utterance, [("utterance", "speaker", "reference", "hypothesis", "operations", *columns), *rows])
    table = [
        (
            *(speaker, c["utterances"], c["words"], *(c[o] for o in OPERATIONS)),
            (c["S"] + c["I"] + c["D"]) / c["words"] if c["words"] else "",
        )
        for speaker, c in sorted(speakers.items())
    ]
    _write_table(per_speaker, [("speaker", "utterances", "words", *columns, "word_error_rate"), *table])


def _write_table(path: Path, rows: Iterable[tuple[Any, ...]]) -> None:
    write_text(path, "".join("\t".join(map(str, row)) + "\n" for row in rows))
