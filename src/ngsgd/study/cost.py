"""Measures the time per minibatch of each optimiser, in turn in one process, with a job's training step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from ngsgd.data.egs import minibatches, open_archive
from ngsgd.errors import DataError
from ngsgd.memory import tune_allocator
from ngsgd.network.model import AcousticModel, load_model
from ngsgd.optim.ngsgd import NGSGD
from ngsgd.training.job import make_optimizer
from ngsgd.training.run import Run

MINIBATCHES = 24  # per repetition: a multiple of 4, since every fourth updates the Fisher-matrix estimates
REPETITIONS = 7
LRATE = 1.0e-6  # so small that the model hardly changes


def costs(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Measures the time per minibatch with the examples and minibatch size of the first run.

    Args:
        runs: a finished run for each optimiser to be measured, by the optimiser's name.

    Returns:
        One row per optimiser and repetition. Columns method; repetition; milliseconds: per minibatch; of_sgd: ratio to
        SGD's time in the same repetition, NaN without SGD.

    Raises:
        DataError: the first run's first archive has fewer examples than a minibatch.
    """
    tune_allocator()
    run = next(iter(runs.values()))
    torch.set_num_threads(run.settings.threads)
    size, context = run.settings.minibatch_size, run.settings.context()
    models = {name: load_model(run.final_model_file).train() for name in runs}
    model = next(iter(models.values()))
    needed = (model.left_context, model.right_context)
    examples: list[tuple[torch.Tensor, torch.Tensor]] = []
    for features, labels in minibatches(open_archive(run.archive_file(0)), 0, context, needed, size, 0):
        if len(labels) == size and len(examples) < MINIBATCHES:
            examples.append((torch.from_numpy(features), torch.from_numpy(labels).long()))
    if not examples:
        raise DataError(f"{run.archive_file(0)}: fewer than {size} examples, the minibatch size")
    rows = []
    with contextlib.ExitStack() as stack:
        for model in models.values():
            stack.enter_context(model.training_layout())
        trainers = {
            name: _Trainer(model, make_optimizer(model, runs[name].settings, LRATE), examples)
            for name, model in models.items()
        }
        for trainer in trainers.values():
            trainer.time_minibatches()  # warm-up: each of the first minibatches updates the estimates
        for repetition in range(REPETITIONS):
            times = {name: trainer.time_minibatches() for name, trainer in trainers.items()}
            for name, milliseconds in times.items():
                ratio = milliseconds / times.get("sgd", np.nan)
                rows.append({"method": name, "repetition": repetition, "milliseconds": milliseconds, "of_sgd": ratio})
    return pd.DataFrame(rows)


class _Trainer:
    def __init__(
        self, model: AcousticModel, optimizer: NGSGD, examples: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        self._model, self._optimizer, self._minibatches = model, optimizer, examples

    def time_minibatches(self) -> float:
        """Trains on all minibatches and returns the milliseconds per minibatch."""
        started = time.perf_counter()
        for features, labels in self._minibatches:
            self._optimizer.zero_grad()
            self._model.backpropagate(features, labels)
            self._optimizer.step()
        return 1000.0 * (time.perf_counter() - started) / len(self._minibatches)
