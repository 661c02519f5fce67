# The start and the end of a call, and what happens to training jobs that fail or keep others waiting on a cluster.

import atexit

from snakemake.settings.enums import RerunTrigger

from ngsgd.locks import RunLock
from ngsgd.workflow.job_policy import TrainingJobPolicy
from ngsgd.workflow.lifecycle import finish_call, report_errors, start_call
from snakemake_executor_plugin_ngsgd import cancel_former_jobs, set_job_policy

# Made before the graph of jobs looks at results/.
RESULTS_LOCK = RunLock("results")

JOB_POLICY = TrainingJobPolicy(RUNS, PLANS, CALL_SETTINGS)


def plan():
    # Files that another call removes and makes meanwhile would make Snakemake fail for other reasons.
    try:
        RESULTS_LOCK.check_free()
    except NgsgdError as e:
        sys.exit(f"error: {e}")


def start():
    try:
        start_call(RESULTS_LOCK, CALL, lambda: cancel_former_jobs(workflow, logger))
    except NgsgdError as e:
        sys.exit(f"error: {e}")


def succeed():
    finish_call(RUNS, PLANS, CALL, CALL_SETTINGS)
    if STUDY and STUDY_TARGETS.needs_another_call():
        print("Going on with the study.", file=sys.stderr)
        # At the very end, when this call has cleaned up.
        atexit.register(os.execv, sys.executable, sys.orig_argv)


def fail(logs):
    # At the very end, after Snakemake's own last words; by then it has left its working directory.
    atexit.register(report_errors, logs[0], Path.cwd(), JOB_POLICY.failure_reasons)


if CALL.is_main_process and not IS_USED_BEFORE:
    CALL.make_only_what_is_missing(frozenset({RerunTrigger.MTIME, RerunTrigger.PARAMS}))
    CALL.add_hooks(plan, start, succeed, fail)
    set_job_policy(workflow, JOB_POLICY)
