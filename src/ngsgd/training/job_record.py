"""The record of a training job, which goes with its model to the average and from there to ``metrics.tsv``.

To add a metric, add a field here and fill it in where the job ends (`ngsgd.training.job.JobMonitor.record`): the
history of the job's model, the iteration's report and, with a `Metric`, ``metrics.tsv`` then have it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, get_type_hints

from ngsgd.errors import ModelError

#: From the values of the jobs that an iteration used to one value for the iteration.
Aggregate = Callable[[Sequence[Any]], float]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def mean_of_layers(values: Sequence[Mapping[str, float]]) -> float:
    """The mean over all layers of all jobs; 0 if there is none."""
    layers = [value for job in values for value in job.values()]
    return sum(layers) / max(1, len(layers))


class Metric(NamedTuple):
    """Annotation of a field that is a column of ``metrics.tsv``.

    Attributes:
        column: name of the column.
        aggregate: from the values of the jobs to the value of the iteration.
    """

    column: str
    aggregate: Aggregate


@dataclass(frozen=True)
class JobRecord:
    """How a training job went.

    Attributes:
        frames: frames that it was trained on.
        log_probability: mean training log-probability per frame, natural logarithm.
        train_accuracy: share of these frames that were classified correctly.
        max_change_share: for each affine layer the share of its steps that max-change limited.
        failure: why its model must not be used; None if it can be.
    """

    frames: int
    log_probability: Annotated[float, Metric("job_log_probability", mean)]
    train_accuracy: float
    max_change_share: Annotated[dict[str, float], Metric("max_change_share", mean_of_layers)]
    failure: str | None

    @classmethod
    def from_history(cls, job: Any, path: str | os.PathLike[str]) -> JobRecord:
        """The record in the history of a job's model.

        Args:
            job: the entry of the history.
            path: of the model, for errors.

        Raises:
            ModelError: it is not the history of a training job's model.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(job, dict) or not job.keys() >= {"iteration", "job", "action", *names}:
            raise ModelError(f"{os.fspath(path)}: not the model of a training job; delete it and run again")
        return cls(**{name: job[name] for name in names})


def metric_columns(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The columns of ``metrics.tsv`` that are made from the records of the jobs that an iteration used."""
    columns = {}
    for name, hint in get_type_hints(JobRecord, include_extras=True).items():
        for annotation in getattr(hint, "__metadata__", ()):
            columns[annotation.column] = annotation.aggregate([record[name] for record in records])
    return columns
