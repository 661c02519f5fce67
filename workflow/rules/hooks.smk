# What the executor on a cluster asks of this workflow, of jobs that fail or keep the others waiting.

import time

from ngsgd.procedure.losses import Stragglers
from snakemake_executor_plugin_ngsgd import hooks

STRAGGLERS = (
    None if EXECUTION.straggler_timeout is None else Stragglers(EXECUTION.straggler_timeout, EXECUTION.min_jobs)
)


def begin():
    """Removes what jobs of a former call have left half-written, on whichever machine."""
    remove_abandoned("results", elsewhere=True)


def failed(job, reason, attempts_left):
    """Notes that a job has failed; whether the workflow goes on as if it had not."""
    if not job.is_group():
        REASONS[str(job.log[0])] = reason
    if job.is_group() or job.rule.name != "train":
        return False
    row = PLANS.job(job.wildcards)
    return fail(RUNS[job.wildcards.run], row, reason, attempts_left, EXECUTION.min_jobs)


def keeps_others_waiting(job):
    """Whether a job is to be given up, though it is still under way."""
    if STRAGGLERS is None or job.is_group() or job.rule.name != "train":
        return False
    run, x = RUNS[job.wildcards.run], int(job.wildcards.iteration)
    outputs = [run.job(x, row.job) for row in PLANS.iteration(job.wildcards.run, x)]
    return STRAGGLERS.overdue(outputs, time.monotonic())


hooks.begin = begin
hooks.failed = failed
hooks.keeps_others_waiting = keeps_others_waiting
