# The start and the end of a call, and what happens to training jobs that fail or keep others waiting on a cluster.

import atexit

from ngsgd.locks import RunLock
from ngsgd.workflow.job_policy import TrainingJobPolicy
from ngsgd.workflow.lifecycle import finish_call, report_errors, start_call
from snakemake_executor_plugin_ngsgd import cancel_former_jobs, set_job_policy

# Made before the graph of jobs looks at results/.
RESULTS_LOCK = RunLock("results")

JOB_POLICY = TrainingJobPolicy(RUNS, PLANS, CALL_SETTINGS)


onstart:
    try:
        start_call(RESULTS_LOCK, CALL, lambda: cancel_former_jobs(workflow, logger))
    except NgsgdError as e:
        sys.exit(f"error: {e}")


onsuccess:
    finish_call(RUNS, PLANS, CALL, CALL_SETTINGS)
    if STUDY and STUDY_TARGETS.needs_another_call():
        print("Going on with the study.", file=sys.stderr)
        # At the very end, when this call has cleaned up.
        atexit.register(os.execv, sys.executable, sys.orig_argv)


onerror:
    # At the very end, after Snakemake's own last words.
    atexit.register(report_errors, log[0] if isinstance(log, list) else log, JOB_POLICY.failure_reasons)


set_job_policy(workflow, JOB_POLICY)
