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

from ngsgd.clusters.cluster import Cluster, End, Needs
from ngsgd.clusters.gridengine import GridEngine
from ngsgd.clusters.slurm import Slurm, SlurmAllocation
from ngsgd.clusters.submission import Submission, Warden
from ngsgd.errors import ClusterError
from ngsgd.files import digest
from ngsgd.lifetime import SCHEDULER

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


def cluster_of(settings: ExecutorSettings) -> Cluster:
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
    keeps_others_waiting: Callable[[JobExecutorInterface], bool] = lambda job: False
    end_former_jobs: Callable[[], None] | None = None


hooks = Hooks()


@dataclass
class Handed:
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
    given_up: str | None = None
    ask: float = 0.0
    absent: int = 0


class Executor(RemoteExecutor):  # type: ignore[misc]
    """See the module."""

    # The thread that calls `check_active_jobs` runs before all the rest is there.
    watch = math.inf

    def __post_init__(self) -> None:
        self.cluster = cluster_of(self.workflow.executor_settings)
        self.retry_wait = self.workflow.executor_settings.retry_wait
        self.mark = f"ngsgd-{digest(os.path.realpath(self.workflow.workdir_init))}"
        self.memory: dict[str, int] = {}  # MB that jobs of a rule have been seen to need
        self.runtime: dict[str, int] = {}  # minutes that a job has been seen to need
        self.handed: dict[str, Handed] = {}
        self.next_seconds_between_status_checks = LOOK
        self.warden = Warden(self.cluster.last_order(self.mark))
        hooks.end_former_jobs = self.end_former_jobs
        self.watch = time.monotonic() + WATCH

    def end_former_jobs(self) -> None:
        """Cancels what a call left behind that died together with its machine.

        Raises:
            ClusterError: the scheduler does not answer, or does not get rid of a job.
        """
        for _ in range(60):
            left = sorted(self.cluster.under_way(self.mark))
            if not left:
                return
            self.logger.info(f"Cancelling {len(left)} jobs of a call that has died: {', '.join(left)}")
            self.cluster.cancel(left)
            time.sleep(1.0)
        raise ClusterError(f"jobs {', '.join(left)} of an earlier call cannot be cancelled: have their nodes looked at")

    def run_job(self, job: JobExecutorInterface) -> None:
        self.workflow.async_run(job.prepare())
        number = "" if job.attempt == 1 else f".try{job.attempt}"
        name = f"{self.title(job)}{number}.{self.mark}"
        wait = self.retry_wait * 2.0 ** (job.attempt - 2) if job.attempt > 1 else 0.0
        self.handed[name] = Handed(start=time.monotonic() + wait)
        info = SubmittedJobInfo(job, external_jobid=name)
        if not wait:
            self.start(info)
        self.report_job_submission(info)

    def title(self, job: JobExecutorInterface) -> str:
        return ".".join([job.name, *([] if job.is_group() else map(str, job.wildcards))])

    def start(self, info: SubmittedJobInfo) -> None:
        """Hands a job to the scheduler, or tries to later where this machine has no room for its command."""
        job, handed = info.job, self.handed[info.external_jobid]
        environment = self.cluster.environment(os.environ)
        # The jobs would end with this process where they run on the same machine, as they should not on a cluster.
        environment.pop(SCHEDULER, None)
        environment |= {f"{library}_NUM_THREADS": str(job.threads) for library in THREADS}
        try:
            handed.submission = Submission(
                self.cluster, info.external_jobid, self.needs(job), self.script(job), environment, self.warden
            )
        except OSError as e:
            self.logger.warning(f"{info.external_jobid}: not submitted ({e}); trying again in {self.retry_wait:g} s")
            handed.start = time.monotonic() + self.retry_wait

    def needs(self, job: JobExecutorInterface) -> Needs:
        """What a job asks for: its resources, and more where these have been seen to be too little."""
        asked = {name: value for name, value in job.resources.items() if name in Needs.__dataclass_fields__}
        needs = Needs(**{**asked, "threads": job.threads})
        if job.name in self.memory:
            needs = replace(needs, mem_mb=max(needs.mem_mb or 0, self.memory[job.name]))
        if self.title(job) in self.runtime:
            needs = replace(needs, runtime=self.runtime[self.title(job)])
        return needs

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
            self.look_for_lost()
            self.watch = time.monotonic() + WATCH
        for info in active_jobs:
            if not self.settled(info):
                yield info

    def settled(self, info: SubmittedJobInfo) -> bool:
        """Whether a job has come to an end, which is reported then."""
        handed, now = self.handed[info.external_jobid], time.monotonic()
        submission = handed.submission
        if handed.given_up is None and self.keeps_others_waiting(info):
            handed.given_up = "the others of its iteration have waited for it long enough"
            if submission is not None:
                self.give_up(info.external_jobid, submission)
        if submission is None:
            if handed.given_up is not None:
                self.failed(info, End(handed.given_up))
                return True
            if now >= handed.start:
                self.start(info)
            return False
        if submission.under_way():
            return False
        end = submission.end(info.job.log)
        if end is None:
            self.succeeded(info)
        elif handed.given_up is not None:
            self.failed(info, End(handed.given_up))
        elif end.transient:
            self.logger.warning(f"{info.external_jobid}: {end.reason}; submitting it again in {self.retry_wait:g} s")
            handed.submission, handed.start = None, now + self.retry_wait
            return False
        else:
            if end.lacking is not None:
                self.grow(info.job, end.lacking, submission.needs)
            self.failed(info, end)
        return True

    def keeps_others_waiting(self, info: SubmittedJobInfo) -> bool:
        """Asks the workflow once a second: it looks at files for an answer."""
        handed, now = self.handed[info.external_jobid], time.monotonic()
        if now < handed.ask:
            return False
        handed.ask = now + 1.0
        return bool(hooks.keeps_others_waiting(info.job))

    def give_up(self, name: str, submission: Submission) -> None:
        """Cancels a job."""
        submission.cancel()
        with contextlib.suppress(ClusterError):  # its command has been told, which is enough for most
            self.cluster.cancel(list(self.cluster.under_way(name)))

    def succeeded(self, info: SubmittedJobInfo) -> None:
        for folder in {os.path.dirname(output) or "." for output in info.job.output}:
            with contextlib.suppress(OSError):
                os.listdir(folder)  # has some file systems look for what is new
        del self.handed[info.external_jobid]
        self.report_job_success(info)

    def failed(self, info: SubmittedJobInfo, end: End) -> None:
        """Reports a job that has failed, unless the workflow can do without it."""
        job = info.job
        attempts_left = job.restart_times + 1 - job.attempt
        if self.handed.pop(info.external_jobid).given_up is not None:
            attempts_left = 0
        try:
            goes_on = hooks.failed(job, end.reason, attempts_left)
        except Exception as e:  # a full disk, say: no reason to leave the other jobs without anyone who waits for them
            self.logger.error(f"{info.external_jobid}: {e}")
            goes_on = False
        if goes_on:
            self.logger.warning(f"{info.external_jobid}: {end.reason}; going on without it")
            self.report_job_success(info)
        else:
            self.report_job_error(info, msg=f"{end.reason}. ")

    def grow(self, job: JobExecutorInterface, lacking: str, needs: Needs) -> None:
        """Has twice as much be asked for as was too little: of memory by all jobs of the rule, of time by this one."""
        if job.is_group():
            return
        if lacking == "memory" and needs.mem_mb is not None:
            self.memory[job.name] = max(2 * needs.mem_mb, self.memory.get(job.name, 0))
            self.logger.warning(
                f"{job.name}: mem_mb={needs.mem_mb} was too little, its jobs ask for {self.memory[job.name]} from now "
                "on; the configuration or the profile should"
            )
        elif lacking == "time" and needs.runtime is not None:
            self.runtime[self.title(job)] = 2 * needs.runtime
            self.logger.warning(f"{self.title(job)}: runtime={needs.runtime} was too little, it gets twice as much")

    def look_for_lost(self) -> None:
        """Ends the waiting for jobs that the scheduler has not known for two looks."""
        try:
            known = set(self.cluster.under_way(self.mark).values())
        except ClusterError:
            return
        for name, handed in list(self.handed.items()):
            if handed.submission is None or name in known:
                handed.absent = 0
            elif self.cluster.lists_all:
                handed.absent += 1
                if handed.absent > 1:
                    handed.submission.forget()

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        self.warden.cancel()
        with contextlib.suppress(ClusterError):
            self.cluster.cancel(list(self.cluster.under_way(self.mark)))

    def shutdown(self) -> None:
        super().shutdown()
        unfinished = (handed.submission for handed in list(self.handed.values()))
        self.warden.dismiss(cancel=any(submission and submission.under_way() for submission in unfinished))
