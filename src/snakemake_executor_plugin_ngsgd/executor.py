"""Runs Snakemake's jobs on a cluster, each by a command of the scheduler that waits for the job.

Differences from other cluster executors: the end of a command reports the end of its job, so that the scheduler is not
polled; the job of a shell rule is the shell command itself, not a Snakemake that parses the workflow again; active jobs
are cancelled when Snakemake ends, however it ends; a job that ran out of memory or time is tried again with more.
"""

import contextlib
import math
import os
import shlex
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface
from snakemake_interface_executor_plugins.logging import LoggerExecutorInterface
from snakemake_interface_executor_plugins.settings import CommonSettings
from snakemake_interface_executor_plugins.workflow import WorkflowExecutorInterface

from ngsgd.errors import ClusterError
from ngsgd.files import digest
from ngsgd.locks import SNAKEMAKE_PROCESS
from snakemake_executor_plugin_ngsgd.policy import job_policy
from snakemake_executor_plugin_ngsgd.requests import PER_JOB, check_resources, has_unasked_memory, make_request
from snakemake_executor_plugin_ngsgd.scheduler import Failure, Resources, make_scheduler
from snakemake_executor_plugin_ngsgd.settings import ExecutorSettings
from snakemake_executor_plugin_ngsgd.submission import Reaper, Submission

POLL_INTERVAL = 0.05  # seconds between polls of the commands' processes
STRAGGLER_INTERVAL = 1.0  # seconds between calls of the policy's `is_straggler` for a job, which may read files
VANISHED_INTERVAL = 60.0  # seconds between queries of the scheduler's active jobs
MAX_AWAITED_INPUTS = 100  # inputs that a job waits for, since a command line has a limited length
# Prefixes of the variables that Snakemake sets for its own shell commands.
THREAD_VARIABLES = ("OMP", "GOTO", "OPENBLAS", "MKL", "VECLIB_MAXIMUM", "NUMEXPR")
# A file may appear on a job's node later than here; on some file systems only listing its folder makes it appear.
WAIT_SCRIPT = """for f in {files}; do n=0; until [ -e "$f" ] || [ $((n += 1)) -gt $((5 * {latency})) ]; do
ls -a "${{f%/*}}" > /dev/null 2>&1 || true; sleep 0.2; done; done"""

common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    auto_deploy_default_storage_provider=False,
)


def workflow_mark(workflow: WorkflowExecutorInterface) -> str:
    """Returns the suffix of the names of a workflow's jobs: the same for all calls in a working directory."""
    return f"ngsgd-{digest(os.path.realpath(workflow.workdir_init))}"


def cancel_former_jobs(workflow: WorkflowExecutorInterface, logger: LoggerExecutorInterface) -> bool:
    """Cancels the jobs of an earlier call whose machine died, if this plugin executes the workflow.

    To be called before the workflow starts a job or changes a file, while no other call is working in the same
    directory: that one would lose its jobs.

    Returns:
        Whether this plugin executes the workflow; if so, no job of an earlier call is active on any machine.

    Raises:
        ClusterError: the scheduler does not answer, or still lists a job after a minute.
    """
    if not isinstance(workflow.executor_settings, ExecutorSettings):  # None for a dry run and --touch
        return False
    scheduler, mark = make_scheduler(workflow.executor_settings), workflow_mark(workflow)
    for _ in range(60):
        left = sorted(scheduler.active_jobs(mark))
        if not left:
            return True
        logger.info(f"Cancelling {len(left)} jobs of a call that has died: {', '.join(left)}")
        scheduler.cancel(left)
        time.sleep(1.0)
    raise ClusterError(
        f"jobs {', '.join(left)} of an earlier call are still active a minute after they were cancelled; "
        "check their nodes, remove the jobs, and start again"
    )


@dataclass
class TrackedJob:
    """State of a job that has not ended. Times are those of `time.monotonic`, in seconds.

    Attributes:
        submit_at: time of the next submission.
        submission: the submitted job; None before its submission.
        give_up_reason: why the job was given up; None if it was not.
        next_straggler_check: time of the next call of the policy's `is_straggler`.
        missing_count: number of successive queries in which the scheduler did not list the job.
    """

    submit_at: float
    submission: Submission | None = None
    give_up_reason: str | None = None
    next_straggler_check: float = 0.0
    missing_count: int = 0


class Executor(RemoteExecutor):  # type: ignore[misc]
    """Snakemake's interface to this plugin; the module's docstring describes it."""

    # Snakemake starts the thread that calls `check_active_jobs` before it calls `__post_init__`.
    next_vanished_check = math.inf

    def __post_init__(self) -> None:
        self.scheduler = make_scheduler(self.workflow.executor_settings)
        check_resources(self.workflow.rules, self.scheduler)
        self.default_resources = self.workflow.resource_settings._parsed_default_resources
        self.has_unasked_memory = has_unasked_memory(self.default_resources)
        self.retry_wait = self.workflow.executor_settings.retry_wait
        self.mark = workflow_mark(self.workflow)
        self.memory: dict[str, int] = {}  # MB to request for the jobs of a rule, once one had too little
        self.runtime: dict[str, int] = {}  # minutes to request for a job, once it had too little
        self.tracked: dict[str, TrackedJob] = {}
        self.next_seconds_between_status_checks = POLL_INTERVAL
        self.reaper = Reaper(self.scheduler.cancel_all_command(self.mark))
        self.next_vanished_check = time.monotonic() + VANISHED_INTERVAL

    def run_job(self, job: JobExecutorInterface) -> None:
        self.workflow.async_run(job.prepare())
        attempt = "" if job.attempt == 1 else f".try{job.attempt}"
        name = f"{self.title(job)}{attempt}.{self.mark}"
        wait = self.retry_wait * 2.0 ** (job.attempt - 2) if job.attempt > 1 else 0.0
        self.tracked[name] = TrackedJob(submit_at=time.monotonic() + wait)
        info = SubmittedJobInfo(job, external_jobid=name)
        if not wait:
            self.submit(info)
        self.report_job_submission(info)

    def title(self, job: JobExecutorInterface) -> str:
        """Returns the name of a job's rule and its wildcards, such as ``train.run.0.1``."""
        return ".".join([job.name, *([] if job.is_group() else map(str, job.wildcards))])

    def submit(self, info: SubmittedJobInfo) -> None:
        """Submits a job; does so later if this machine cannot start another process now."""
        job, tracked = info.job, self.tracked[info.external_jobid]
        environment = self.scheduler.environment(os.environ)
        # A job with this variable ends with this process if both run on one machine, which is meant for local jobs.
        environment.pop(SNAKEMAKE_PROCESS, None)
        environment |= {f"{library}_NUM_THREADS": str(job.threads) for library in THREAD_VARIABLES}
        try:
            tracked.submission = Submission(
                self.scheduler,
                info.external_jobid,
                self.requested_resources(job),
                self.script(job),
                environment,
                self.reaper,
            )
        except OSError as e:
            self.logger.warning(f"{info.external_jobid}: not submitted ({e}); trying again in {self.retry_wait:g} s")
            tracked.submit_at = time.monotonic() + self.retry_wait

    def requested_resources(self, job: JobExecutorInterface) -> Resources:
        """Returns the resources to request for a job: its own, or more once these have been too little."""
        given = dict(job.resources.items())
        jobs = list(job.jobs) if job.is_group() else [job]
        if job.is_group():  # Snakemake adds up what holds for the whole group
            given |= {name: max(single.resources.get(name, 0) for single in jobs) for name in PER_JOB}
        defaults = {
            name
            for name, value in self.default_resources.items()
            if all(name in single.rule.resources and single.rule.resources[name] == value for single in jobs)
        }
        if self.has_unasked_memory and "mem_mb" in defaults:
            given.pop("mem_mb", None)
        resources = make_request(given, job.threads, defaults)
        if job.name in self.memory:
            resources = resources.with_memory(self.memory[job.name])
        if self.title(job) in self.runtime:
            resources = replace(resources, runtime=self.runtime[self.title(job)])
        return resources

    def script(self, job: JobExecutorInterface) -> str:
        """Returns the bash script of a job.

        For a shell rule it waits until the node sees the job's inputs and then runs the shell command. Any other job
        is run by a Snakemake of its own.
        """
        if job.is_group() or not job.is_shell or self.workflow.deployment_settings.deployment_method:
            return str(self.format_job_exec(job))
        files = " ".join(shlex.quote(path) for path in list(job.input)[:MAX_AWAITED_INPUTS])
        wait = WAIT_SCRIPT.format(files=files, latency=self.workflow.execution_settings.latency_wait)
        return f"set -euo pipefail; {wait}; {job.shellcmd}"

    @property
    def cores(self) -> str:
        return "all"  # a Snakemake inside a job may use all cores of the job

    def get_job_exec_prefix(self, job: JobExecutorInterface) -> str:
        return f"cd {shlex.quote(self.workflow.workdir_init)}"

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncIterator[SubmittedJobInfo]:
        if time.monotonic() > self.next_vanished_check:
            self.detect_vanished_jobs()
            self.next_vanished_check = time.monotonic() + VANISHED_INTERVAL
        for info in active_jobs:
            if not self.poll(info):
                yield info

    def poll(self, info: SubmittedJobInfo) -> bool:
        """Advances the state of a job, and returns whether it has ended; if so, its end has been reported."""
        tracked, now = self.tracked[info.external_jobid], time.monotonic()
        submission = tracked.submission
        if tracked.give_up_reason is None and self.is_straggler(info):
            tracked.give_up_reason = "the others of its iteration have waited for it long enough"
            if submission is not None:
                self.give_up(info.external_jobid, submission)
        if submission is None:
            if tracked.give_up_reason is not None:
                self.job_failed(info, Failure(tracked.give_up_reason))
                return True
            if now >= tracked.submit_at:
                self.submit(info)
            return False
        if submission.is_running():
            return False
        outcome = submission.outcome(info.job.log)
        if outcome is None:
            self.job_succeeded(info)
        elif tracked.give_up_reason is not None:
            self.job_failed(info, Failure(tracked.give_up_reason))
        elif outcome.not_started:
            self.logger.warning(
                f"{info.external_jobid}: {outcome.reason}; submitting it again in {self.retry_wait:g} s"
            )
            tracked.submission, tracked.submit_at = None, now + self.retry_wait
            return False
        else:
            if outcome.exhausted is not None:
                self.escalate(info.job, outcome.exhausted, submission.resources)
            self.job_failed(info, outcome)
        return True

    def is_straggler(self, info: SubmittedJobInfo) -> bool:
        """Returns whether the workflow's policy gives up a job that has not ended."""
        tracked, now = self.tracked[info.external_jobid], time.monotonic()
        if now < tracked.next_straggler_check:
            return False
        tracked.next_straggler_check = now + STRAGGLER_INTERVAL
        try:
            return job_policy(self.workflow).is_straggler(info.job)
        except Exception as e:  # it would end this thread, which waits for the other jobs, too
            self.logger.error(f"{info.external_jobid}: {e}")
            return False

    def give_up(self, name: str, submission: Submission) -> None:
        """Cancels a job."""
        submission.cancel()
        with contextlib.suppress(ClusterError):  # SIGTERM to the job's command cancels most jobs already
            self.scheduler.cancel(list(self.scheduler.active_jobs(name)))

    def job_succeeded(self, info: SubmittedJobInfo) -> None:
        for folder in {os.path.dirname(output) or "." for output in info.job.output}:
            with contextlib.suppress(OSError):
                os.listdir(folder)  # makes new files appear on some file systems
        del self.tracked[info.external_jobid]
        self.report_job_success(info)

    def job_failed(self, info: SubmittedJobInfo, outcome: Failure) -> None:
        """Reports that a job has failed, or that it has succeeded if the workflow goes on without it."""
        job = info.job
        attempts_left = job.restart_times + 1 - job.attempt
        if self.tracked.pop(info.external_jobid).give_up_reason is not None:
            attempts_left = 0
        try:
            counts_as_success = job_policy(self.workflow).on_failure(job, outcome.reason, attempts_left)
        except Exception as e:  # such as a full disk: it would end this thread, which waits for the other jobs, too
            self.logger.error(f"{info.external_jobid}: {e}")
            counts_as_success = False
        if counts_as_success:
            self.logger.warning(f"{info.external_jobid}: {outcome.reason}; going on without it")
            self.report_job_success(info)
        else:
            self.report_job_error(info, msg=f"{outcome.reason}. ")

    def escalate(self, job: JobExecutorInterface, exhausted: str, resources: Resources) -> None:
        """Doubles the request for an exhausted resource: memory for all jobs of the rule, time for this job."""
        if job.is_group():
            return
        if exhausted == "memory" and resources.memory is not None:
            self.memory[job.name] = max(2 * resources.memory, self.memory.get(job.name, 0))
            self.logger.warning(
                f"{job.name}: mem_mb={resources.memory} was too little, its jobs ask for {self.memory[job.name]} "
                "from now on; raise it in the configuration or the profile"
            )
        elif exhausted == "time" and resources.runtime is not None:
            self.runtime[self.title(job)] = 2 * resources.runtime
            self.logger.warning(f"{self.title(job)}: runtime={resources.runtime} was too little, it gets twice as much")

    def detect_vanished_jobs(self) -> None:
        """Stops waiting for jobs that the scheduler has not listed twice in succession."""
        try:
            active = set(self.scheduler.active_jobs(self.mark).values())
        except ClusterError:
            return
        for name, tracked in list(self.tracked.items()):
            if tracked.submission is None or name in active:
                tracked.missing_count = 0
            elif self.scheduler.lists_every_job:
                tracked.missing_count += 1
                if tracked.missing_count > 1:
                    tracked.submission.abandon()

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        self.reaper.cancel()
        with contextlib.suppress(ClusterError):
            self.scheduler.cancel(list(self.scheduler.active_jobs(self.mark)))

    def shutdown(self) -> None:
        super().shutdown()
        unfinished = (tracked.submission for tracked in list(self.tracked.values()))
        self.reaper.release(cancel=any(submission and submission.is_running() for submission in unfinished))
