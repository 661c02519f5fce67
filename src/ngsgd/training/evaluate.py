"""Evaluation of the final model on the test subset: frame scores, and word or phone error rates."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ngsgd.data.alignment import decode_word
from ngsgd.data.corpus import NO_CLASS, CorpusInfo, Subset, WordModel, read_info
from ngsgd.data.phones import PhoneLoop
from ngsgd.errors import DataError
from ngsgd.files import write_text
from ngsgd.kaldi.tables import split_words
from ngsgd.network.model import AcousticModel, load_model
from ngsgd.training.decoding import best_point, read_transcripts, score_points, word_errors
from ngsgd.training.scoring import Score, check_corpus_fits, check_labels
from ngsgd.training.settings import Settings

ACOUSTIC_SCALES = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
NUM_TUNED = 100  # validation utterances on which the acoustic scale is chosen


def evaluate(settings: Settings, model: Path, data: Path, splits: Sequence[Path], output: Path) -> None:
    """Writes the scores of a final model on the test subset (JSON).

    Corpora whose test set has an alignment: ``log_probability``, ``accuracy`` and ``frames``. Corpora with words:
    ``word_error_rate``, ``words`` and ``word_errors``; decoded with a graph also ``lmwt`` and ``word_ins_penalty``, the
    language-model weight and the word insertion penalty with the fewest errors on validation utterances, and
    ``lm_weights``, the errors at all of them. Corpora with phones: ``phone_error_rate``, ``phones``, ``insertions``,
    ``deletions``, ``substitutions`` and ``acoustic_scale``, chosen likewise.

    Args:
        settings: of the run.
        model: path of the final model.
        data: folder of the prepared corpus.
        splits: paths of the words of all splits; empty if the settings have no graph.
        output: path of the file to be written.

    Raises:
        ModelError: the model cannot be read, or has no priors.
        DataError: the corpus or the decoded words cannot be read, there is no test utterance, or the corpus does not
            match the model.
    """
    torch.set_num_threads(settings.threads)
    final = load_model(model).eval()
    info, test = read_info(data), Subset(data, "test")
    check_corpus_fits(final, info, data)
    scores = score_utterances(final, test)
    result: dict[str, Any] = scores._asdict() if scores else {}
    if info.words:
        errors = sum(_decode(final, test, i, info.words) != word for i, word in enumerate(test.texts))
        result |= {"word_error_rate": errors / len(test), "words": len(test), "word_errors": errors}
    elif info.phones:
        result |= _score_phones(final, info, data)
    elif splits:
        rows = score_points(settings, read_transcripts(settings, data, splits))
        best = rows[best_point(rows)]
        errors = sum(best["test"][kind] for kind in ("insertions", "deletions", "substitutions"))
        result |= {
            "word_error_rate": best["test"]["word_error_rate"],
            "words": best["test"]["words"],
            "word_errors": errors,
            "lmwt": best["lmwt"],
            "word_ins_penalty": best["word_ins_penalty"],
            "lm_weights": rows,
        }
    write_text(output, json.dumps(result, indent=1) + "\n")


@torch.no_grad()
def score_utterances(model: AcousticModel, subset: Subset) -> Score | None:
    """Scores the model on all frames of a subset; first and last frames are repeated for context.

    Returns:
        The scores on the utterances with an alignment; None if there are none.

    Raises:
        DataError: the subset is empty, or has a label out of range.
    """
    if not len(subset):
        raise DataError("no utterance to score the model on")

    total, correct, frames = 0.0, 0, 0
    for i in range(len(subset)):
        features, labels = subset.utterance(i)
        if labels[0] == NO_CLASS:
            continue
        check_labels(labels, model.num_classes, f"utterance {subset.names[i]}")
        y = torch.from_numpy(labels.astype(np.int64))
        log_posteriors = model.log_posteriors(torch.from_numpy(np.array(features)))
        total += float(log_posteriors.gather(1, y[:, None]).double().sum())
        correct += int((log_posteriors.argmax(dim=1) == y).sum())
        frames += len(labels)
    return Score(total / frames, correct / frames, frames) if frames else None


def _score_phones(model: AcousticModel, info: CorpusInfo, data: Path) -> dict[str, Any]:
    loop = PhoneLoop(Subset(data, "train"), info.phones, model.num_classes)
    valid, test = Subset(data, "valid"), Subset(data, "test")
    tuned = list(_likelihoods(model, valid, NUM_TUNED))
    references = [split_words(text) for text in valid.texts[: len(tuned)]]
    errors = [word_errors(references, [loop.decode(frames, scale) for frames in tuned]) for scale in ACOUSTIC_SCALES]
    scale = ACOUSTIC_SCALES[min(range(len(errors)), key=lambda k: errors[k].rate)]
    test_errors = word_errors(
        [split_words(text) for text in test.texts],
        [loop.decode(frames, scale) for frames in _likelihoods(model, test, len(test))],
    )
    counts = test_errors._asdict()
    return {"phone_error_rate": test_errors.rate, "phones": counts.pop("words")} | counts | {"acoustic_scale": scale}


def _likelihoods(model: AcousticModel, subset: Subset, number: int) -> Iterator[npt.NDArray[np.float32]]:
    """Yields the log-likelihoods (T, C) of a subset's first utterances."""
    for i in range(min(number, len(subset))):
        yield model.log_likelihoods(torch.from_numpy(np.array(subset.utterance(i)[0]))).numpy()


def _decode(model: AcousticModel, subset: Subset, i: int, words: list[WordModel]) -> str:
    features, _ = subset.utterance(i)
    return decode_word(model.log_likelihoods(torch.from_numpy(np.array(features))).numpy(), words)
