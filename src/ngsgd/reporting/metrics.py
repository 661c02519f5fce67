"""Collects the metrics of a run (``metrics.tsv``) from the files that its jobs wrote."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from ngsgd.training.job_record import metric_columns
from ngsgd.training.plan import Job, read_plan
from ngsgd.training.progress import read_progress
from ngsgd.training.run import Run


def metrics_table(run: Run) -> pd.DataFrame:
    """Returns one row per model: its scores, and the iteration that started from it (empty for the last model).

    Args:
        run: a run whose models have all been trained and scored.

    Returns:
        Columns iteration; epochs: data processed before the model; {valid,train}_log_probability (natural logarithm,
        per frame) and {valid,train}_accuracy on the validation and training subsets; jobs; jobs_used: jobs in the
        average; learning_rate; minibatch_size; action; alignment: number of realignments before the labels;
        job_log_probability: mean over the jobs used, during training; max_change_share: their mean
        fraction of steps limited by max-change; relative_change: largest of any layer's parameters; seconds: time of
        the slowest job plus the averaging; warning: lost and left-out jobs with the reasons.

    Raises:
        DataError: the corpus or the plan cannot be read.
        OSError: a model has not been scored.
    """
    layout = run.layout()
    expanded = layout.num_archives * layout.frames_per_eg
    jobs = [list(rows) for _, rows in itertools.groupby(read_plan(run.plan_file), key=lambda job: job.iteration)]
    rows: list[dict[str, Any]] = []
    processed = 0
    for x in range(len(jobs) + 1):
        scores = json.loads(run.diagnostics_file(x).read_text(encoding="utf-8"))
        row: dict[str, Any] = {"iteration": x, "epochs": processed / expanded}
        for subset in ("valid", "train"):
            row[f"{subset}_log_probability"] = scores[subset]["log_probability"]
            row[f"{subset}_accuracy"] = scores[subset]["accuracy"]
        if x < len(jobs):
            row |= _iteration(jobs[x], json.loads(run.report_file(x + 1).read_text(encoding="utf-8")))
            job_progress = [read_progress(run.progress_file(x, n)) for n in range(len(jobs[x]) + 1)]
            averaging, *training = (progress.seconds if progress else float("nan") for progress in job_progress)
            row["seconds"] = max(training) + averaging
            processed += len(jobs[x])
        rows.append(row)
    table = pd.DataFrame(rows)
    return table.astype(dict.fromkeys(("jobs", "jobs_used", "minibatch_size", "alignment"), "Int64"))


def _iteration(jobs: Sequence[Job], report: dict[str, Any]) -> dict[str, Any]:
    records = report["records"]
    used = [record for record in records if record["job"] in report["jobs"]]
    left_out = [f"job {record['job']} left out: {record['left_out']}" for record in records if record["left_out"]]
    lost = [f"job {n} lost: {reason}" for n, reason in report["lost"].items()]
    return {
        "jobs": len(jobs),
        "jobs_used": len(used),
        "learning_rate": jobs[0].learning_rate,
        "minibatch_size": jobs[0].minibatch_size,
        "action": jobs[0].action,
        "alignment": jobs[0].alignment,
        **metric_columns(used),
        "relative_change": max(report["relative_change"].values(), default=0.0),
        "warning": "; ".join([*lost, *left_out]),
    }
