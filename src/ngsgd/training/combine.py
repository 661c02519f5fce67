"""Model combination: the final model is the average of the last models that is best on the validation examples.

The candidates are the averages of the last 1, 2, 3, ... M models. The last model and the average of all M are among
them, so that the final model is at least as good as both on these examples. Only one number is chosen, and
neighbouring candidates differ little, so that there is little to overfit; ``docs/combination.md`` has the measurements.
The reference (Kaldi) instead fits a weight per model and layer on training frames, and does not constrain the sum of a
layer's weights; on small data the result was worse than every model it was combined from.

With a decay the final model is an exponential moving average of all models instead (arXiv:1703.01024), and nothing is
chosen.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ngsgd.data.egs import Examples, minibatches, open_archive
from ngsgd.errors import ModelError
from ngsgd.files import write_text
from ngsgd.network.affine import Affine
from ngsgd.network.components import Normalize, PNorm
from ngsgd.network.model import PRIOR_FLOOR, AcousticModel, load_model
from ngsgd.network.nnet2 import HISTORY_KEY, TRANSITION_MODEL
from ngsgd.network.storage import Arrays, read_model
from ngsgd.training.scoring import BATCH, check_fit, score

MAX_CANDIDATES = 20  # most averages that are tried
PARAMETER_STDDEV = 1.0  # of affine layers whose scale has no effect; see `rescale`


def suffix_lengths(num_models: int) -> list[int]:
    """Returns how many of the last models each candidate averages; at most `MAX_CANDIDATES` numbers, the first is 1."""
    if num_models <= MAX_CANDIDATES:
        return list(range(1, num_models + 1))
    groups = MAX_CANDIDATES - 1
    return [1, *(-(-num_models * g // groups) for g in range(1, groups + 1))]


def _averages(paths: Sequence[str | os.PathLike[str]], decay: float | None) -> Iterator[tuple[int, Arrays]]:
    """Yields each candidate's number of models and its arrays. Only a running sum and one model are in memory.

    Args:
        paths: of the models, in the order of training.
        decay: weight of a model relative to that of the next one; the only candidate is then the weighted average of
            all models. None for plain averages of the last models.
    """
    lengths = set(suffix_lengths(len(paths))) if decay is None else {len(paths)}
    sums: Arrays = {}
    weight, total_weight = 1.0, 0.0
    for count, path in enumerate(reversed(paths), start=1):
        arrays, _ = read_model(path)
        if not sums:
            sums = {name: array.astype(np.float64) for name, array in arrays.items()}
        elif {n: a.shape for n, a in arrays.items()} != {n: a.shape for n, a in sums.items()}:
            raise ModelError(f"{os.fspath(path)}: its arrays are not those of {os.fspath(paths[-1])}")
        else:
            weight *= 1.0 if decay is None else decay
            for name, array in arrays.items():
                sums[name] += weight * array.astype(np.float64)
        total_weight += weight
        if count in lengths:
            yield count, {name: (total / total_weight).astype(arrays[name].dtype) for name, total in sums.items()}


def combine(
    models: Sequence[str | os.PathLike[str]],
    valid: str | os.PathLike[str],
    prior: str | os.PathLike[str],
    context: tuple[int, int],
    threads: int,
    output: str | os.PathLike[str],
    report: str | os.PathLike[str],
    valid_labels: str | os.PathLike[str] | None = None,
    transition_model: str | None = None,
    decay: float | None = None,
) -> None:
    """Chooses the final model, rescales its layers, sets its priors and writes it.

    Args:
        models: paths of the last M models, in the order of training.
        valid: archive of validation frames.
        prior: archive of training frames over which posteriors are averaged to give the priors.
        context: frames before and after the label in the archives.
        threads: number of threads to compute with.
        output: path of the final model.
        report: path of the report (JSON): each candidate's validation log-probability, and the choice.
        valid_labels: file with the validation frames' labels; None for the archive's own labels.
        transition_model: text of the transition model of Kaldi's pdf-ids. It is stored in the model's history, so that
            the model can be converted back to Kaldi.
        decay: of the exponential moving average; None to choose the best average.

    Raises:
        ModelError: a model cannot be read, or has another architecture.
        DataError: an archive cannot be read, or does not match the models.
    """
    torch.set_num_threads(threads)
    model = load_model(models[-1]).eval()
    examples = open_archive(valid, valid_labels)
    log_probabilities: dict[int, float] = {}
    chosen, best = 0, Arrays()
    for count, arrays in _averages(models, decay):
        _set(model, arrays)
        log_probabilities[count] = score(model, examples, context, os.fspath(valid)).log_probability
        # In a tie the longer average is taken, since it varies less.
        if not chosen or log_probabilities[count] >= log_probabilities[chosen]:
            chosen, best = count, arrays
    _set(model, best)
    rescale(model)
    model.priors = mean_posterior(model, open_archive(prior), context, os.fspath(prior)).clamp(min=PRIOR_FLOOR)
    combination = {"models": chosen, "candidates": len(models)}
    model.history = model.history | {"combination": combination}
    if transition_model is not None:
        model.history[HISTORY_KEY] = {TRANSITION_MODEL: transition_model}
    scores = {str(count): log_probability for count, log_probability in log_probabilities.items()}
    write_text(report, json.dumps(combination | {"valid_log_probability": scores}, indent=1) + "\n")
    model.save(output)


def _set(model: AcousticModel, arrays: Arrays) -> None:
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})


@torch.no_grad()
def rescale(model: AcousticModel) -> None:
    """Scales each affine layer below p-norm and normalize to a fixed standard deviation of its weights.

    The scale of such a layer grows in training but does not affect the output. Source: ``nnet2/nnet-normalize-stddev``.
    """
    chain = model.chain()
    for affine, pnorm, normalize in zip(chain, chain[1:], chain[2:], strict=False):
        if isinstance(affine, Affine) and isinstance(pnorm, PNorm) and isinstance(normalize, Normalize):
            stddev = affine.weight.double().square().mean().sqrt()
            factor = PARAMETER_STDDEV / float(stddev) if float(stddev) > 0.0 else 1.0
            affine.weight.mul_(factor)
            affine.bias.mul_(factor)


@torch.no_grad()
def mean_posterior(model: AcousticModel, archive: Examples, context: tuple[int, int], name: str) -> Tensor:
    """Returns the average posterior (C,) over an archive of single frames."""
    check_fit(model, archive, context, name)
    total: Any = 0.0
    for features, _ in minibatches(archive, 0, context, (model.left_context, model.right_context), BATCH, None):
        total = total + model(torch.from_numpy(features))[:, 0].double().exp().sum(dim=0)
    mean: Tensor = (total / len(archive)).to(next(model.parameters()).dtype)
    return mean
