"""Snakemake's jobs on a cluster, each by a command of the scheduler's that waits for it.

What this does otherwise than the usual executors: the end of a job is known when its command ends, nobody is asked; a
job with a shell command is that command, not a Snakemake that reads the workflow anew to start it; what is under way
ends with Snakemake, however that ends; and a job that lacked memory or time is tried again with more.
"""

import contextlib
import math
import os
import shlex
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface
from snakemake_interface_executor_plugins.settings import CommonSettings, ExecutorSettingsBase

from ngsgd.errors import ClusterError
from ngsgd.files import digest
from ngsgd.locks import SCHEDULER
from snakemake_executor_plugin_ngsgd.gridengine import GridEngine
from snakemake_executor_plugin_ngsgd.scheduler import Failure, Resources, Scheduler
from snakemake_executor_plugin_ngsgd.slurm import Slurm, SlurmAllocation
from snakemake_executor_plugin_ngsgd.submission import Reaper, Submission

LOOK = 0.05  # seconds from one look at the commands' processes to the next
WATCH = 60.0  # seconds from one look at what the scheduler has under way to the next
WAITED = 100  # of a job's inputs as many are waited for where it runs; a command has its limits
# What Snakemake sets for a shell command of its own.
THREADS = ("OMP", "GOTO", "OPENBLAS", "MKL", "VECLIB_MAXIMUM", "NUMEXPR")
# Files may be seen later where a job runs than where Snakemake does; to list their folder makes some file systems look.
WAIT = """for f in {files}; do n=0; until [ -e "$f" ] || [ $((n += 1)) -gt $((5 * {latency})) ]; do
ls -a "${{f%/*}}" > /dev/null 2>&1 || true; sleep 0.2; done; done"""


@dataclass
class ExecutorSettings(ExecutorSettingsBase):  # type: ignore[misc]
    """The options that a profile has for this executor, each with ``ngsgd-`` before it."""

    scheduler: str = field(default="slurm", metadata={"help": "slurm, slurm-allocation or sge."})
    sge_memory: str = field(default="mem_free", metadata={"help": "Resource of Grid Engine's for memory, by thread."})
    sge_gpu: str = field(default="gpu", metadata={"help": "Resource of Grid Engine's for GPUs."})
    sge_parallel_environment: str = field(default="smp", metadata={"help": "Of Grid Engine, for several threads."})
    retry_wait: float = field(
        default=10.0,
        metadata={"help": "Seconds from a job's failure to its next attempt, doubled each time."},
    )


common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    auto_deploy_default_storage_provider=False,
)


def make_scheduler(settings: ExecutorSettings) -> Scheduler:
    """The scheduler that the options name.

    Raises:
        WorkflowError: there is no such one.
    """
    if settings.scheduler == "slurm":
        return Slurm()
    if settings.scheduler == "slurm-allocation":
        if "SLURM_JOB_ID" not in os.environ:
            raise WorkflowError("--ngsgd-scheduler slurm-allocation: Snakemake does not run in one (sbatch, salloc)")
        return SlurmAllocation()
    if settings.scheduler == "sge":
        return GridEngine(settings.sge_memory, settings.sge_gpu, settings.sge_parallel_environment)
    raise WorkflowError(f"--ngsgd-scheduler {settings.scheduler}: there are slurm, slurm-allocation and sge")


@dataclass
class Hooks:
    """What this executor and a workflow want of one another.

    Attributes:
        failed: of the workflow: told of a job that has failed, the reason, and how often it will be tried again:
            whether the workflow goes on as if it had not failed.
        keeps_others_waiting: of the workflow: whether a job is to be given up, though it is still under way.
        end_former_jobs: of the executor, where it is in use: cancels what an earlier call has left under way. To be
            called when no other call can be at work, and before anything is changed.
    """

    failed: Callable[[JobExecutorInterface, str, int], bool] = lambda job, reason, attempts_left: False
    is_straggler: Callable[[JobExecutorInterface], bool] = lambda job: False
    cancel_former_jobs: Callable[[], None] | None = None


hooks = Hooks()


@dataclass
class TrackedJob:
    """What the executor notes of a job.

    Attributes:
        start: when it is to be handed to the scheduler, by the clock that only goes on.
        submission: since it was.
        given_up: why it was cancelled.
        ask: when the workflow is to be asked again whether it keeps others waiting.
        absent: how often the scheduler did not know of it.
    """

    start: float
    submission: Submission | None = None
    give_up_reason: str | None = None
    run_scheduler_command: float = 0.0
    absent: int = 0


class Executor(RemoteExecutor):  # type: ignore[misc]
    """See the module."""

    # The thread that calls `check_active_jobs` runs before all the rest is there.
    watch = math.inf

    def __post_init__(self) -> None:
        self.scheduler = make_scheduler(self.workflow.executor_settings)
        self.retry_wait = self.workflow.executor_settings.retry_wait
        self.mark = f"ngsgd-{digest(os.path.realpath(self.workflow.workdir_init))}"
        self.memory: dict[str, int] = {}  # MB that jobs of a rule have been seen to need
        self.runtime: dict[str, int] = {}  # minutes that a job has been seen to need
        self.tracked: dict[str, TrackedJob] = {}
        self.next_seconds_between_status_checks = LOOK
        self.reaper = Reaper(self.scheduler.cancel_all_command(self.mark))
        hooks.cancel_former_jobs = self.cancel_former_jobs
        self.watch = time.monotonic() + WATCH

    def cancel_former_jobs(self) -> None:
        """Cancels what a call left behind that died together with its machine.

        Raises:
            ClusterError: the scheduler does not answer, or does not get rid of a job.
        """
        for _ in range(60):
            left = sorted(self.scheduler.active_jobs(self.mark))
            if not left:
                return
            self.logger.info(f"Cancelling {len(left)} jobs of a call that has died: {', '.join(left)}")
            self.scheduler.cancel(left)
            time.sleep(1.0)
        raise ClusterError(f"jobs {', '.join(left)} of an earlier call cannot be cancelled: have their nodes looked at")

    def run_job(self, job: JobExecutorInterface) -> None:
        self.workflow.async_run(job.prepare())
        number = "" if job.attempt == 1 else f".try{job.attempt}"
        name = f"{self.title(job)}{number}.{self.mark}"
        wait = self.retry_wait * 2.0 ** (job.attempt - 2) if job.attempt > 1 else 0.0
        self.tracked[name] = TrackedJob(start=time.monotonic() + wait)
        info = SubmittedJobInfo(job, external_jobid=name)
        if not wait:
            self.start(info)
        self.report_job_submission(info)

    def title(self, job: JobExecutorInterface) -> str:
        return ".".join([job.name, *([] if job.is_group() else map(str, job.wildcards))])

    def start(self, info: SubmittedJobInfo) -> None:
        """Hands a job to the scheduler, or tries to later where this machine has no room for its command."""
        job, tracked = info.job, self.tracked[info.external_jobid]
        environment = self.scheduler.environment(os.environ)
        # The jobs would end with this process where they run on the same machine, as they should not on a cluster.
        environment.pop(SCHEDULER, None)
        environment |= {f"{library}_NUM_THREADS": str(job.threads) for library in THREADS}
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
            tracked.start = time.monotonic() + self.retry_wait

    def requested_resources(self, job: JobExecutorInterface) -> Resources:
        """What a job asks for: its resources, and more where these have been seen to be too little."""
        asked = {name: value for name, value in job.resources.items() if name in Resources.__dataclass_fields__}
        resources = Resources(**{**asked, "threads": job.threads})
        if job.name in self.memory:
            resources = replace(resources, mem_mb=max(resources.mem_mb or 0, self.memory[job.name]))
        if self.title(job) in self.runtime:
            resources = replace(resources, runtime=self.runtime[self.title(job)])
        return resources

    def script(self, job: JobExecutorInterface) -> str:
        """A job's shell command, once its input is to be seen where it runs; else a Snakemake that makes the job."""
        if job.is_group() or not job.is_shell or self.workflow.deployment_settings.deployment_method:
            return str(self.format_job_exec(job))
        files = " ".join(shlex.quote(path) for path in list(job.input)[:WAITED])
        waiting = WAIT.format(files=files, latency=self.workflow.execution_settings.latency_wait)
        return f"set -euo pipefail; {waiting}; {job.shellcmd}"

    @property
    def cores(self) -> str:
        return "all"  # what the job is given, it may use

    def get_job_exec_prefix(self, job: JobExecutorInterface) -> str:
        return f"cd {shlex.quote(self.workflow.workdir_init)}"

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncIterator[SubmittedJobInfo]:
        if time.monotonic() > self.watch:
            self.detect_vanished_jobs()
            self.watch = time.monotonic() + WATCH
        for info in active_jobs:
            if not self.poll(info):
                yield info

    def poll(self, info: SubmittedJobInfo) -> bool:
        """Whether a job has come to an end, which is reported then."""
        tracked, now = self.tracked[info.external_jobid], time.monotonic()
        submission = tracked.submission
        if tracked.give_up_reason is None and self.is_straggler(info):
            tracked.give_up_reason = "the others of its iteration have waited for it long enough"
            if submission is not None:
                self.give_up(info.external_jobid, submission)
        if submission is None:
            if tracked.give_up_reason is not None:
                self.failed(info, Failure(tracked.give_up_reason))
                return True
            if now >= tracked.start:
                self.start(info)
            return False
        if submission.is_running():
            return False
        outcome = submission.outcome(info.job.log)
        if outcome is None:
            self.succeeded(info)
        elif tracked.give_up_reason is not None:
            self.failed(info, Failure(tracked.give_up_reason))
        elif outcome.not_started:
            self.logger.warning(
                f"{info.external_jobid}: {outcome.reason}; submitting it again in {self.retry_wait:g} s"
            )
            tracked.submission, tracked.start = None, now + self.retry_wait
            return False
        else:
            if outcome.exhausted is not None:
                self.escalate(info.job, outcome.exhausted, submission.resources)
            self.failed(info, outcome)
        return True

    def is_straggler(self, info: SubmittedJobInfo) -> bool:
        """Asks the workflow once a second: it looks at files for an answer."""
        tracked, now = self.tracked[info.external_jobid], time.monotonic()
        if now < tracked.run_scheduler_command:
            return False
        tracked.run_scheduler_command = now + 1.0
        return bool(hooks.is_straggler(info.job))

    def give_up(self, name: str, submission: Submission) -> None:
        """Cancels a job."""
        submission.cancel()
        with contextlib.suppress(ClusterError):  # its command has been told, which is enough for most
            self.scheduler.cancel(list(self.scheduler.active_jobs(name)))

    def succeeded(self, info: SubmittedJobInfo) -> None:
        for folder in {os.path.dirname(output) or "." for output in info.job.output}:
            with contextlib.suppress(OSError):
                os.listdir(folder)  # has some file systems look for what is new
        del self.tracked[info.external_jobid]
        self.report_job_success(info)

    def failed(self, info: SubmittedJobInfo, outcome: Failure) -> None:
        """Reports a job that has failed, unless the workflow can do without it."""
        job = info.job
        attempts_left = job.restart_times + 1 - job.attempt
        if self.tracked.pop(info.external_jobid).give_up_reason is not None:
            attempts_left = 0
        try:
            goes_on = hooks.failed(job, outcome.reason, attempts_left)
        except Exception as e:  # a full disk, say: no reason to leave the other jobs without anyone who waits for them
            self.logger.error(f"{info.external_jobid}: {e}")
            goes_on = False
        if goes_on:
            self.logger.warning(f"{info.external_jobid}: {outcome.reason}; going on without it")
            self.report_job_success(info)
        else:
            self.report_job_error(info, msg=f"{outcome.reason}. ")

    def escalate(self, job: JobExecutorInterface, exhausted: str, resources: Resources) -> None:
        """Has twice as much be asked for as was too little: of memory by all jobs of the rule, of time by this one."""
        if job.is_group():
            return
        if exhausted == "memory" and resources.mem_mb is not None:
            self.memory[job.name] = max(2 * resources.mem_mb, self.memory.get(job.name, 0))
            self.logger.warning(
                f"{job.name}: mem_mb={resources.mem_mb} was too little, its jobs ask for {self.memory[job.name]} "
                "from now on; the configuration or the profile should"
            )
        elif exhausted == "time" and resources.runtime is not None:
            self.runtime[self.title(job)] = 2 * resources.runtime
            self.logger.warning(f"{self.title(job)}: runtime={resources.runtime} was too little, it gets twice as much")

    def detect_vanished_jobs(self) -> None:
        """Ends the waiting for jobs that the scheduler has not known for two looks."""
        try:
            known = set(self.scheduler.active_jobs(self.mark).values())
        except ClusterError:
            return
        for name, tracked in list(self.tracked.items()):
            if tracked.submission is None or name in known:
                tracked.absent = 0
            elif self.scheduler.lists_every_job:
                tracked.absent += 1
                if tracked.absent > 1:
                    tracked.submission.abandon()

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        self.reaper.cancel()
        with contextlib.suppress(ClusterError):
            self.scheduler.cancel(list(self.scheduler.active_jobs(self.mark)))

    def shutdown(self) -> None:
        super().shutdown()
        unfinished = (tracked.submission for tracked in list(self.tracked.values()))
        self.reaper.release(cancel=any(submission and submission.is_running() for submission in unfinished))
