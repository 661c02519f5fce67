"""The final model: the average over the end of training that is best on the validation examples.

The reference fits a weight for each of the last models and each layer, on training frames, with nothing to keep the
weights of a layer from any sum; on small data that made the model worse than any of those it was made from. Here
the candidates are the averages of the last 1, 2, 3, ... M models, the choice is made on the validation examples, and
since the last model and the plain average of all are among them, the final one is on these examples at least as
good as both. One number is chosen, from M that differ little from one to the next, so that there is next to nothing
to overfit; ``docs/combination.md`` has the measurements.

Where a decay is given the final model is an exponential moving average instead (arXiv:1703.01024), of which nothing is
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
from ngsgd.network.nnet2 import HISTORY, TRANSITIONS
from ngsgd.network.storage import Arrays, read_model
from ngsgd.training.scoring import BATCH, check_fit, score

MAX_CANDIDATES = 20  # averages that are tried, at most
PARAMETER_STDDEV = 1.0  # of the affine layers whose scale does not matter


def suffix_lengths(num_models: int) -> list[int]:
    """How many of the last models each candidate is the average of: 1, and at most `MAX_CANDIDATES` - 1 more."""
    if num_models <= MAX_CANDIDATES:
        return list(range(1, num_models + 1))
    groups = MAX_CANDIDATES - 1
    return [1, *(-(-num_models * g // groups) for g in range(1, groups + 1))]


def _averages(paths: Sequence[str | os.PathLike[str]], decay: float | None) -> Iterator[tuple[int, Arrays]]:
    """The candidates, made one from the other: only a sum and one model are in memory.

    Args:
        paths: of the models.
        decay: weight of a model relative to the next one's in the only candidate, which is made of all; None for
            averages of the last ones.
    """
    lengths = set(suffix_lengths(len(paths))) if decay is None else {len(paths)}
    sums: Arrays = {}
    weight, weights = 1.0, 0.0
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
        weights += weight
        if count in lengths:
            yield count, {name: (total / weights).astype(arrays[name].dtype) for name, total in sums.items()}


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
    """Chooses the final model, rescales its layers, gives it priors and writes it.

    Args:
        models: the last M models, in the order of training.
        valid: archive of validation frames.
        prior: archive of training frames over which posteriors are averaged.
        context: frames before and after the label in the archives.
        threads: to compute with.
        output: where the final model is to be written.
        report: where what was tried is to be written (JSON).
        valid_labels: file with the validation frames' labels, where they are not the archive's own.
        transition_model: of Kaldi's pdf-ids, which goes into the model's history, so that it can go back to Kaldi.
        decay: of the moving average of all models that the final one is to be; None for the best average.

    Raises:
        ModelError: a model cannot be read, or is of another architecture.
        DataError: an archive cannot be read, or does not go with the models.
    """
    torch.set_num_threads(threads)
    model = load_model(models[-1]).eval()
    examples = open_archive(valid, valid_labels)
    tried: dict[int, float] = {}
    chosen, best = 0, Arrays()
    for count, arrays in _averages(models, decay):
        _set(model, arrays)
        tried[count] = score(model, examples, context, os.fspath(valid)).log_probability
        # Of two that are as good, the longer average: it is the steadier one.
        if not chosen or tried[count] >= tried[chosen]:
            chosen, best = count, arrays
    _set(model, best)
    rescale(model)
    model.priors = mean_posterior(model, open_archive(prior), context, os.fspath(prior)).clamp(min=PRIOR_FLOOR)
    combination = {"models": chosen, "candidates": len(models)}
    model.history = model.history | {"combination": combination}
    if transition_model is not None:
        model.history[HISTORY] = {TRANSITIONS: transition_model}
    scores = {str(count): log_probability for count, log_probability in tried.items()}
    write_text(report, json.dumps(combination | {"valid_log_probability": scores}, indent=1) + "\n")
    model.save(output)


def _set(model: AcousticModel, arrays: Arrays) -> None:
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})


@torch.no_grad()
def rescale(model: AcousticModel) -> None:
    """Brings the affine layers below p-norm and normalize to a fixed parameter deviation; the output stays the same.

    The scale of such a layer has no effect, but grows through training. Source: ``nnet2/nnet-normalize-stddev``.
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
    """The average posterior (C,) over an archive of single frames."""
    check_fit(model, archive, context, name)
    total: Any = 0.0
    for features, _ in minibatches(archive, 0, context, (model.left_context, model.right_context), BATCH, None):
        total = total + model(torch.from_numpy(features))[:, 0].double().exp().sum(dim=0)
    mean: Tensor = (total / len(archive)).to(next(model.parameters()).dtype)
    return mean
