"""Decoding with a graph, and word error rates at each language-model weight."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ngsgd.data.corpus import Subset, read_info, split_bounds
from ngsgd.errors import ConfigError, DataError
from ngsgd.files import write_text
from ngsgd.kaldi.decoder import Decoder, Words
from ngsgd.kaldi.graph import prepare_graph
from ngsgd.kaldi.transition import transitions_from_text
from ngsgd.network.model import load_model
from ngsgd.training.scoring import check_corpus_fits
from ngsgd.training.settings import Settings

DECODED = ("valid", "test")  # the language-model weight is chosen on the first


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
    """Writes the graph of the settings with pdf-ids instead of transition-ids.

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
    if info.transition_model is None:
        raise DataError(
            "graph: its transition-ids mean nothing without the model of the alignments; train_alignment must be an "
            "alignment directory with final.mdl"
        )
    prepare_graph(graph, transitions_from_text(info.transition_model, data / "corpus.json").pdf_ids, output)


def lm_weights(settings: Settings) -> list[int]:
    """Returns the language-model weights to score; acoustic log-likelihoods are divided by them."""
    return list(range(settings.min_lmwt, settings.max_lmwt + 1))


def decode(settings: Settings, model: Path, graph: Path, data: Path, split: int, output: Path) -> None:
    """Decodes one split of the validation and test utterances at each weight, and writes the words (JSON).

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
    scales = [1.0 / weight for weight in lm_weights(settings)]
    decoded: dict[str, dict[str, list[Words]]] = {}
    with Decoder(graph, source, settings.beam, settings.max_active) as decoder:
        for name in DECODED:
            subset = Subset(data, name)
            decoded[name] = {}
            for i in range(*split_bounds(len(subset), split, settings.num_splits)):
                features = torch.from_numpy(np.array(subset.utterance(i)[0]))
                log_likelihoods = scored.log_likelihoods(features).numpy()
                decoded[name][subset.names[i]] = decoder.decode(subset.names[i], log_likelihoods, scales)
    write_text(output, json.dumps(decoded, indent=0) + "\n")


def score_lm_weights(settings: Settings, data: Path, splits: Sequence[Path]) -> list[dict[str, Any]]:
    """Scores the words that `decode` wrote for all splits, at each language-model weight.

    Args:
        settings: of the run.
        data: folder of the prepared corpus.
        splits: paths of the words of all splits.

    Returns:
        For each weight a dictionary with ``lmwt``, and for each subset ``word_error_rate``, ``words``, ``insertions``,
        ``deletions``, ``substitutions`` and ``incomplete`` (utterances whose best path does not end in a final state).

    Raises:
        DataError: an utterance is missing, or a subset's references have no words.
    """
    decoded: dict[str, dict[str, Any]] = {name: {} for name in DECODED}
    for path in splits:
        try:
            part = json.loads(path.read_text(encoding="utf-8"))
            for name in DECODED:
                decoded[name] |= part[name]
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise DataError(f"{path}: not the words of a split ({e}); delete it and run again") from None
    subsets = {name: Subset(data, name) for name in DECODED}
    rows = []
    for k, weight in enumerate(lm_weights(settings)):
        row: dict[str, Any] = {"lmwt": weight}
        for name, subset in subsets.items():
            if missing := set(subset.names) - decoded[name].keys():
                raise DataError(f"{splits[0].parent}: {min(missing)} is not decoded; delete the folder, run again")
            hypotheses = [decoded[name][utterance][k] for utterance in subset.names]
            errors = word_errors([text.split() for text in subset.texts], [words for words, _ in hypotheses])
            incomplete = sum(not complete for _, complete in hypotheses)
            row[name] = {"word_error_rate": errors.rate} | errors._asdict() | {"incomplete": incomplete}
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


def best_lm_weight(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the row of the weight with the fewest errors on validation utterances; in a tie the middle one."""
    fewest = min(row["valid"]["word_error_rate"] for row in rows)
    best = [row for row in rows if row["valid"]["word_error_rate"] == fewest]
    return best[len(best) // 2]


def write_lm_weight_scores(rows: Sequence[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Writes ``lm_weights.tsv``, one row per weight.

    Raises:
        OSError: the file cannot be written.
    """
    columns = ("word_error_rate", "insertions", "deletions", "substitutions", "incomplete", "words")
    lines = ["\t".join(["lmwt", *(f"{name}_{column}" for name in DECODED for column in columns)])]
    for row in rows:
        lines.append("\t".join(str(v) for v in [row["lmwt"], *(row[n][c] for n in DECODED for c in columns)]))
    write_text(Path(path), "\n".join(lines) + "\n")
