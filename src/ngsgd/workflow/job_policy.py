"""The policy for training jobs that fail, or keep the others of their iteration waiting, on a cluster."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ngsgd.training.call_settings import CallSettings
from ngsgd.training.lost_jobs import StragglerMonitor, jobs_after_losses, read_lost_jobs, record_failure
from ngsgd.training.run import Run
from ngsgd.workflow.plans import Plans


class TrainingJobPolicy:
    """Lets iterations do without lost jobs, as ``min_jobs`` and ``straggler_timeout`` allow.

    The executor calls its methods with Snakemake's jobs.

    Args:
        runs: the runs by name.
        plans: their plans.
        execution: the settings of the call.

    Attributes:
        failure_reasons: by the path of a job's log, why the job failed.
    """

    def __init__(self, runs: Mapping[str, Run], plans: Plans, execution: CallSettings) -> None:
        self._runs, self._plans, self._execution = runs, plans, execution
        self.failure_reasons: dict[str, str] = {}
        self._stragglers: StragglerMonitor | None = None
        if execution.straggler_timeout is not None and execution.min_jobs is not None:
            self._stragglers = StragglerMonitor(execution.straggler_timeout, execution.min_jobs)

    def on_failure(self, job: Any, reason: str, attempts_left: int) -> bool:
        """Records the failure of a job, and returns whether the workflow goes on without it."""
        if not job.is_group():
            self.failure_reasons |= {str(log): reason for log in job.log}
        training_job = self._training_job(job)
        if training_job is None:
            return False
        run, x, number = training_job
        # Jobs may have been lost since the call made its plan, which changes what later jobs train on.
        lost = {(lost.iteration, lost.job) for lost in read_lost_jobs(run.lost_jobs_file)}
        row = next((row for row in jobs_after_losses(run.plan_file, x, lost) if row.job == number), None)
        if row is None:
            return False
        output, progress = run.job_file(x, number), run.progress_file(x, number)
        return record_failure(row, run.plan_file, output, progress, reason, attempts_left, self._execution.min_jobs)

    def is_straggler(self, job: Any) -> bool:
        """Returns whether the iteration of a training job has waited for it long enough."""
        training_job = self._training_job(job)
        if self._stragglers is None or training_job is None:
            return False
        run, x, _ = training_job
        outputs = [run.job_file(x, row.job) for row in self._plans.iteration(run.folder.name, x)]
        return self._stragglers.overdue(outputs, time.monotonic())

    def _training_job(self, job: Any) -> tuple[Run, int, int] | None:
        """Returns the run, the iteration and the number of a training job, or None if the job is another one.

        The output tells, not the name of the rule, which a module may change and which another rule may have.
        """
        if job.is_group() or not {"run", "iteration", "job"} <= set(job.wildcards.keys()):
            return None
        run = self._runs.get(job.wildcards.run)
        if run is None or not job.wildcards.iteration.isdecimal() or not job.wildcards.job.isdecimal():
            return None
        x, number = int(job.wildcards.iteration), int(job.wildcards.job)
        return (run, x, number) if str(run.job_file(x, number)) in map(str, job.output) else None
