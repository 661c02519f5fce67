"""Words: the decoding of a corpus with a graph, and the word error rates at each language-model weight."""

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
from ngsgd.training.run import Run
from ngsgd.training.scoring import check_corpus_fits

DECODED = ("valid", "test")  # the weight is chosen on the first


class WordErrors(NamedTuple):
    """The errors in a number of utterances with ``words`` words altogether."""

    words: int
    insertions: int
    deletions: int
    substitutions: int

    @property
    def errors(self) -> int:
        return self.insertions + self.deletions + self.substitutions

    @property
    def rate(self) -> float:
        """The word error rate, a fraction."""
        return self.errors / self.words


def make_graph(run: Run) -> None:
    """Writes the run's graph with pdf-ids in the place of transition-ids.

    Raises:
        DataError: the graph is damaged, or not of the corpus's transition model.
        ConfigError: the run has no graph.
    """
    info = read_info(run.data)
    graph = run.settings.path("graph")
    if graph is None:
        raise ConfigError("graph: the run's settings have none")
    if info.transition_model is None:
        raise DataError(
            "graph: its transition-ids mean nothing without the model of the alignments; train_alignment must be an "
            "alignment directory with final.mdl"
        )
    prepare_graph(graph, transitions_from_text(info.transition_model, run.data / "corpus.json").pdf_ids, run.graph)


def lm_weights(run: Run) -> list[int]:
    """The language-model weights that are tried: acoustic log-likelihoods are divided by them."""
    return list(range(run.settings.min_lmwt, run.settings.max_lmwt + 1))


def decode(run: Run, split: int) -> None:
    """Decodes one split of the validation and test utterances at each weight, and writes what was found (JSON).

    Raises:
        DataError: the corpus or the graph cannot be read, or the decoder crashed.
        ModelError: the model cannot be read, or has no priors.
        ConfigError: the run has no graph.
    """
    s = run.settings
    torch.set_num_threads(s.threads)
    model = load_model(run.final).eval()
    check_corpus_fits(model, read_info(run.data), run.data)
    graph = s.path("graph")
    if graph is None:
        raise ConfigError("graph: the run's settings have none")
    scales = [1.0 / weight for weight in lm_weights(run)]
    found: dict[str, dict[str, list[Words]]] = {}
    with Decoder(run.graph, graph, s.beam, s.max_active) as decoder:
        for name in DECODED:
            subset = Subset(run.data, name)
            found[name] = {}
            for i in range(*split_bounds(len(subset), split, s.num_splits)):
                features = torch.from_numpy(np.array(subset.utterance(i)[0]))
                log_likelihoods = model.log_likelihoods(features).numpy()
                found[name][subset.names[i]] = decoder.decode(subset.names[i], log_likelihoods, scales)
    write_text(run.decoded(split), json.dumps(found, indent=0) + "\n")


def score_lm_weights(run: Run) -> list[dict[str, Any]]:
    """The word errors at each weight, from what `decode` found in all splits.

    Returns:
        For each weight ``lmwt``, and of each subset ``word_error_rate``, ``words``, ``insertions``, ``deletions``,
        ``substitutions`` and ``incomplete`` (utterances whose best path does not end where the graph does).

    Raises:
        DataError: an utterance is missing, or nothing was said in a subset.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in DECODED}
    for split in range(run.settings.num_splits):
        try:
            part = json.loads(run.decoded(split).read_text(encoding="utf-8"))
            for name in DECODED:
                found[name] |= part[name]
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise DataError(f"{run.decoded(split)}: not the words of a split ({e}); delete it and run again") from None
    subsets = {name: Subset(run.data, name) for name in DECODED}
    rows = []
    for k, weight in enumerate(lm_weights(run)):
        row: dict[str, Any] = {"lmwt": weight}
        for name, subset in subsets.items():
            if missing := set(subset.names) - found[name].keys():
                raise DataError(f"{run.decoded(0).parent}: {min(missing)} is not decoded; delete the folder, run again")
            hypotheses = [found[name][utterance][k] for utterance in subset.names]
            errors = word_errors([text.split() for text in subset.texts], [words for words, _ in hypotheses])
            incomplete = sum(not complete for _, complete in hypotheses)
            row[name] = {"word_error_rate": errors.rate} | errors._asdict() | {"incomplete": incomplete}
        rows.append(row)
    return rows


def word_errors(references: Sequence[list[str]], hypotheses: Sequence[list[str]]) -> WordErrors:
    """The fewest errors by which the hypotheses come of the references.

    Raises:
        DataError: the references have no words.
    """
    import kaldialign

    counts = [kaldialign.edit_distance(r, h) for r, h in zip(references, hypotheses, strict=True)]
    words = sum(map(len, references))
    if not words:
        raise DataError("word error rate: nothing was said; has the data directory a text?")
    return WordErrors(words, *(sum(c[kind] for c in counts) for kind in ("ins", "del", "sub")))


def best_lm_weight(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of the weight with the fewest errors on validation utterances; of several the one in their middle."""
    fewest = min(row["valid"]["word_error_rate"] for row in rows)
    best = [row for row in rows if row["valid"]["word_error_rate"] == fewest]
    return best[len(best) // 2]


def write_lm_weight_scores(rows: Sequence[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Writes ``lm_weights.tsv``: a row a weight.

    Raises:
        OSError: the file cannot be written.
    """
    columns = ("word_error_rate", "insertions", "deletions", "substitutions", "incomplete", "words")
    lines = ["\t".join(["lmwt", *(f"{name}_{column}" for name in DECODED for column in columns)])]
    for row in rows:
        lines.append("\t".join(str(v) for v in [row["lmwt"], *(row[n][c] for n in DECODED for c in columns)]))
    write_text(Path(path), "\n".join(lines) + "\n")
