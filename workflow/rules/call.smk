# What happens when a call begins and ends, and to jobs that fail or keep others waiting on a cluster.

import atexit
import json
import queue
import shutil
import signal
import threading
import time

from ngsgd.forkserver.server import start as start_server
from ngsgd.files import remove_abandoned
from ngsgd.locks import RunLock, announce_scheduler
from ngsgd.training.lost_jobs import StragglerMonitor, record_failure
from ngsgd.training.pruning import prune
from snakemake_executor_plugin_ngsgd import JobPolicy, cancel_former_jobs, set_job_policy

results_lock = RunLock("results")


def claim_results():
    """Takes the lock of results/, until this process ends, and tells the jobs to end with it."""
    try:
        results_lock.claim()
    except NgsgdError as e:
        sys.exit(f"error: {e}")
    announce_scheduler()
    try:
        cancelled = cancel_former_jobs(workflow, logger)
    except NgsgdError as e:
        sys.exit(f"error: {e}")
    # Unless they were cancelled, jobs of a call that has died may still be writing on other machines.
    remove_abandoned("results", elsewhere=cancelled)
    if not ON_CLUSTER:
        start_server()


def hear_in_a_thread(number):
    """Has a thread do what Snakemake does when a signal asks it to end.

    A handler runs in the main thread, between any two of its instructions. Snakemake's own waits for the scheduler's
    lock, and for ever where the main thread holds that.
    """
    answer, heard = signal.getsignal(number), queue.SimpleQueue()
    if not callable(answer):  # Snakemake has set none, as where it does not run in the main thread
        return

    def listen():
        while True:
            answer(*heard.get())

    threading.Thread(target=listen, daemon=True).start()
    signal.signal(number, lambda *arguments: heard.put(arguments))


# Why jobs have failed, by their logs, where the cluster knows more of it than these.
REASONS = {}


def report_errors(snakemake_log):
    """Ends a failed call with the one line that each failed job has to say, which stands last in its log."""
    text = Path(snakemake_log).read_text(encoding="utf-8", errors="replace")
    told = set()
    for path in dict.fromkeys(re.findall(r"^ *log: (\S+) \(check log", text, flags=re.MULTILINE)):
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines() if Path(path).exists() else []
        said = [line for line in lines if line.startswith("error: ")]
        # The same may have befallen several jobs of a fan-out.
        reason = REASONS.get(path, "a job was ended, or broke")
        new = [line for line in said or [f"error: {reason}: its log is {path}"] if line not in told]
        told.update(new)
        for line in new:
            print(line, file=sys.stderr)


def remove_unneeded():
    """What is not kept when all is made."""
    # Snakemake forgets them where it was killed before it had removed them.
    for distributed in Path("results/egs").glob("*/distributed"):
        shutil.rmtree(distributed, ignore_errors=True)
    finished = [
        run for name, run in RUNS.items() if PLANS.known(name) and run.evaluation.exists() and run.plan.exists()
    ]
    for run in finished:
        named = [x for x in range(len(PLANS.of(run.folder.name)) + 1) if str(run.model(x)) in workflow.dag.targetfiles]
        prune(run, read_plan(run.plan), EXECUTION.keeping, named, idle=True)
    if not EXECUTION.keep_examples and len(finished) == len(RUNS):
        for run in finished:
            shutil.rmtree(run.examples / "archives", ignore_errors=True)


def show_results():
    """What came out, a line a run, for who has just waited for it."""
    for name, run in RUNS.items():
        path = run.folder / "evaluation.json"
        if PLANS.known(name) and path.exists():
            scores = json.loads(path.read_text(encoding="utf-8"))
            unit = next((unit for unit in ("word", "phone") if f"{unit}_error_rate" in scores), None)
            words = f", {unit} error rate {scores[f'{unit}_error_rate']:.2%}" if unit else ""
            print(
                f"{name}: on the test set log-probability {scores['log_probability']:.3f} per frame, "
                f"accuracy {scores['accuracy']:.1%}{words}; {run.folder}/figures/convergence.png",
                file=sys.stderr,
            )


onstart:
    hear_in_a_thread(signal.SIGTERM)
    claim_results()


onsuccess:
    remove_unneeded()
    show_results()
    if STUDY:
        go_on()


onerror:
    # At the very end, after Snakemake's own last words.
    atexit.register(report_errors, log[0] if isinstance(log, list) else log)


STRAGGLERS = (
    None if EXECUTION.straggler_timeout is None else StragglerMonitor(EXECUTION.straggler_timeout, EXECUTION.min_jobs)
)


class TrainingJobPolicy(JobPolicy):
    """Lets iterations do without lost jobs on a cluster, as `min_jobs` and `straggler_timeout` allow."""

    def on_failure(self, job, reason, attempts_left):
        """Records the failure of a job, and returns whether the workflow goes on without it."""
        if not job.is_group():
            REASONS[str(job.log[0])] = reason
        if job.is_group() or job.rule.name != "train":
            return False
        row = PLANS.job(job.wildcards)
        return record_failure(RUNS[job.wildcards.run], row, reason, attempts_left, EXECUTION.min_jobs)

    def is_straggler(self, job):
        """Returns whether the iteration of a training job has waited for it long enough."""
        if STRAGGLERS is None or job.is_group() or job.rule.name != "train":
            return False
        run, x = RUNS[job.wildcards.run], int(job.wildcards.iteration)
        outputs = [run.job(x, row.job) for row in PLANS.iteration(job.wildcards.run, x)]
        return STRAGGLERS.overdue(outputs, time.monotonic())


set_job_policy(workflow, TrainingJobPolicy())
