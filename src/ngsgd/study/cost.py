"""What a minibatch costs with each optimiser: measured in turn, in one process, trained as a job does it."""

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

MINIBATCHES = 24  # of a repetition: estimates are renewed at every fourth
REPETITIONS = 7
LRATE = 1.0e-6  # so small that the model stays as it is


def costs(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Milliseconds of a minibatch, by the network and the examples of the first run.

    Args:
        runs: finished ones, with the settings of each optimiser that is to be measured, by its name.

    Returns:
        A row for each optimiser and repetition. Columns method, repetition, milliseconds, of_sgd: their ratio to
        SGD's in the same repetition, where it is among the optimisers.

    Raises:
        DataError: the first run's first archive has not enough examples.
    """
    tune_allocator()
    run = next(iter(runs.values()))
    torch.set_num_threads(run.settings.threads)
    size, context = run.settings.minibatch_size, run.settings.context()
    models = {name: load_model(run.final).train() for name in runs}
    model = next(iter(models.values()))
    needed = (model.left_context, model.right_context)
    taken: list[tuple[torch.Tensor, torch.Tensor]] = []
    for features, labels in minibatches(open_archive(run.archive(0)), 0, context, needed, size, 0):
        if len(labels) == size and len(taken) < MINIBATCHES:
            taken.append((torch.from_numpy(features), torch.from_numpy(labels).long()))
    if not taken:
        raise DataError(f"{run.archive(0)}: fewer than {size} examples, a minibatch of the run's")
    rows = []
    with contextlib.ExitStack() as stack:
        for model in models.values():
            stack.enter_context(model.training_layout())
        steps = {
            name: _Trainer(model, make_optimizer(model, runs[name].settings, LRATE), taken)
            for name, model in models.items()
        }
        for step in steps.values():
            step.go()  # past the first minibatches, of which each renews the estimates
        for repetition in range(REPETITIONS):
            found = {name: step.go() for name, step in steps.items()}
            for name, milliseconds in found.items():
                ratio = milliseconds / found.get("sgd", np.nan)
                rows.append({"method": name, "repetition": repetition, "milliseconds": milliseconds, "of_sgd": ratio})
    return pd.DataFrame(rows)


class _Trainer:
    def __init__(
        self, model: AcousticModel, optimizer: NGSGD, taken: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        self._model, self._optimizer, self._taken = model, optimizer, taken

    def go(self) -> float:
        """Milliseconds a minibatch, over all of them."""
        started = time.perf_counter()
        for features, labels in self._taken:
            self._optimizer.zero_grad()
            self._model.backpropagate(features, labels)
            self._optimizer.step()
        return 1000.0 * (time.perf_counter() - started) / len(self._taken)
