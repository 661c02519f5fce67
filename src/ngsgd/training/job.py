"""One training job: trains a model on one label position of one archive.

Imports are kept to a minimum, since this starts once for each job of each iteration.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from ngsgd.data.egs import minibatches, open_archive
from ngsgd.errors import ConfigError
from ngsgd.files import derived_seed
from ngsgd.gpus import claim_gpu
from ngsgd.memory import tune_allocator
from ngsgd.network.model import AcousticModel, load_model
from ngsgd.network.topology import insert_hidden_layer
from ngsgd.optim.ngsgd import NGSGD, Method
from ngsgd.training.job_record import JobRecord
from ngsgd.training.plan import INSERT, Job
from ngsgd.training.progress import Reporter
from ngsgd.training.scoring import check_fit, check_labels
from ngsgd.training.settings import Precision, Settings

REPORTS = 10  # lines on the objective in a job's log

PRECONDITIONERS: dict[str, Method] = {"ng-sgd": "online", "ng-sgd-simple": "simple", "sgd": "none"}

log = logging.getLogger(__name__)


def run_job(
    settings: Settings,
    job: Job,
    model_path: str | os.PathLike[str],
    archive_path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    progress: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
) -> None:
    """Trains and writes the job's model; its history records the job's results under ``job``.

    If the objective or the parameters become non-finite, the job stops and records this as ``failure``; averaging
    leaves such a model out.

    Args:
        settings: of the run.
        job: row of the plan.
        model_path: the model that the iteration starts from.
        archive_path: the archive that the plan names.
        output: path of the job's model.
        progress: path of the job's progress file.
        labels: file with the archive's labels; None for the archive's own labels.

    Raises:
        ModelError: the model cannot be read.
        DataError: the archive cannot be read, or does not match the model.
        ConfigError: the device is not available.
        OSError: the job's model cannot be written.
    """
    torch.set_num_threads(job.threads)
    tune_allocator()
    model = load_model(model_path)
    if job.action == INSERT:
        model = insert_hidden_layer(
            model, settings.hidden_layers(), derived_seed(settings.seed, "layer", job.iteration)
        )
    archive = open_archive(archive_path, labels)
    reporter = Reporter(progress, len(archive))
    name = os.fspath(archive_path)
    context = settings.context()
    check_fit(model, archive, context, name, job.frame)
    where = device(settings)
    model.to(where).train()
    with model.training_layout():
        optimizer = make_optimizer(model, settings, job.learning_rate)
        batches = minibatches(
            archive, job.frame, context, (model.left_context, model.right_context), job.minibatch_size, job.seed
        )
        num_minibatches = -(-len(archive) // job.minibatch_size)
        monitor = JobMonitor(len(archive), num_minibatches, optimizer, reporter, where)
        failure = _train(model, optimizer, batches, name, monitor, settings.precision)
    if failure is None and monitor.frames == 0:
        failure = f"no example of {name} has a label at position {job.frame}"
    if failure is None and not all(bool(p.isfinite().all()) for p in model.state_dict().values()):
        failure = "the parameters are not finite"
    if failure:
        log.warning("iteration %d job %d: %s", job.iteration, job.job, failure)
    model.history = model.history | {"job": job._asdict() | asdict(monitor.record(failure))}
    model.save(output)
    reporter.done(monitor.frames, monitor.objective)


def make_optimizer(model: AcousticModel, settings: Settings, lr: float) -> NGSGD:
    """Makes the optimiser of the settings, with learning rate ``lr`` per sample."""
    return NGSGD(
        model,
        lr=lr,
        preconditioner=PRECONDITIONERS[settings.optimizer],
        alpha=settings.alpha,
        rank_in=settings.rank_in,
        rank_out=settings.rank_out,
        num_samples_history=settings.num_samples_history,
        update_period=settings.update_period,
        max_change_per_sample=settings.max_change_per_sample,
    )


def device(settings: Settings) -> torch.device:
    """Returns the device of the settings; with several GPUs, one that no other job has claimed.

    Raises:
        ConfigError: the machine has no usable GPU.
    """
    if settings.device == "cuda":
        claim_gpu()
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device: {settings.device}: this machine has no usable GPU")
    return torch.device(settings.device)


def _train(
    model: AcousticModel, optimizer: NGSGD, batches: Iterator[Any], name: str, monitor: JobMonitor, precision: Precision
) -> str | None:
    """Trains on each minibatch once; returns the reason if training failed, or None.

    The host waits for a GPU only where the monitor is flushed and where a Fisher estimate is updated.
    """
    device = next(model.parameters()).device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    with monitor.progress_bar():
        for features, labels in batches:
            check_labels(labels, model.num_classes, name)
            x, y = _to_device(features, device), _to_device(labels, device).long()
            optimizer.zero_grad()
            with autocast:
                loss, correct = model.backpropagate(x, y)
            if failure := monitor.add(loss, correct, len(labels)):
                return failure
            try:
                optimizer.step()
            except FloatingPointError as e:
                return f"minibatch {monitor.minibatches - 1}: {e}"
        return monitor.flush()


def _to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class JobMonitor:
    """Sums a job's objective and correct frames, and writes its progress file, progress bar and log lines.

    Args:
        num_examples: of the archive.
        num_minibatches: upper bound of the job's minibatches; they are logged in `REPORTS` blocks.
        optimizer: of the job.
        reporter: writes the job's progress file.
        where: the device. On a GPU the sums are read only once per block, since reading them waits for the GPU.
    """

    def __init__(
        self, num_examples: int, num_minibatches: int, optimizer: NGSGD, reporter: Reporter, where: torch.device
    ) -> None:
        self.objective, self.correct, self.frames, self.minibatches = 0.0, 0, 0, 0
        # Objective and correct frames since the last flush.
        self._pending = torch.zeros(2, dtype=torch.float64, device=where)
        self._pending_frames = 0
        self._block_objective, self._block_frames, self._block_start = 0.0, 0, time.perf_counter()
        self._num_examples = num_examples
        self._block = max(1, -(-num_minibatches // REPORTS))
        self._flush_period = 1 if where.type == "cpu" else self._block
        self._optimizer = optimizer
        self._reporter = reporter

    @contextmanager
    def progress_bar(self) -> Iterator[None]:
        with tqdm(total=self._num_examples, unit="frame", mininterval=5.0) as self._bar:
            self._block_start = time.perf_counter()
            yield
            self._report()

    def add(self, loss: Tensor, correct: Tensor, frames: int) -> str | None:
        """Adds a minibatch; returns the reason if the objective is found non-finite, or None."""
        self._pending += torch.stack((-loss.double(), correct.double()))
        self._pending_frames += frames
        self.minibatches += 1
        self._bar.update(frames)
        if self.minibatches % self._flush_period == 0 and (failure := self.flush()):
            return failure
        if self.minibatches % self._block == 0:
            self._report()
        return None

    def flush(self) -> str | None:
        """Reads the pending sums and adds them to the totals; returns the reason if they are non-finite, or None."""
        objective, correct = self._pending.tolist()
        frames, self._pending_frames = self._pending_frames, 0
        self._pending.zero_()
        if not math.isfinite(objective):
            since = "in" if self._flush_period == 1 else "by"
            return f"the objective became {objective} {since} minibatch {self.minibatches - 1}"
        self.objective += objective
        self.correct += int(correct)
        self.frames += frames
        self._block_objective += objective
        self._block_frames += frames
        self._reporter.working(self.frames, self.objective)
        return None

    def _report(self) -> None:
        if not self._block_frames:
            return
        seconds = time.perf_counter() - self._block_start
        shares = self._optimizer.max_change_share().values()
        self._bar.write(
            f"minibatch {self.minibatches}: "
            f"log-probability per frame {self._block_objective / self._block_frames:.4f}, "
            f"{self._block_frames / seconds:.0f} frames/s, "
            f"max-change limited {sum(shares) / max(1, len(shares)):.0%} of the steps so far",
            file=sys.stderr,
        )
        self._block_objective, self._block_frames, self._block_start = 0.0, 0, time.perf_counter()

    def record(self, failure: str | None) -> JobRecord:
        """Returns how the job went.

        Args:
            failure: why its model must not be used; None if it can be.
        """
        frames = max(1, self.frames)
        shares = self._optimizer.max_change_share()
        return JobRecord(
            frames=self.frames,
            log_probability=self.objective / frames,
            train_accuracy=self.correct / frames,
            max_change_share={name.removeprefix("components."): share for name, share in shares.items()},
            failure=failure,
        )
