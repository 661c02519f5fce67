"""Snakemake's jobs on a cluster, each by a command of the scheduler's that waits for it.

What this does otherwise than the usual executors: the end of a job is known when its command ends, nobody is asked; a
job with a shell command is that command, not a Snakemake that reads the workflow anew to start it; what is under way
ends with Snakemake, however that ends; and a job that lacked memory or time is tried again with more.
"""

import contextlib
import math
import os
import shlex
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import IO, Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface
from snakemake_interface_executor_plugins.settings import CommonSettings, ExecutorSettingsBase

from ngsgd.clusters.cluster import Cluster, End, Needs
from ngsgd.clusters.gridengine import GridEngine
from ngsgd.clusters.slurm import Slurm, SlurmAllocation
from ngsgd.errors import ClusterError
from ngsgd.files import digest
from ngsgd.lifetime import SCHEDULER

PATIENCE = 10.0  # seconds that a scheduler's command has to end when it was told to
LINES = 3  # of the end of a failed job's log, to tell why
DONE = "ngsgd: done\n"  # what a job says last
LOOK = 0.05  # seconds from one look at the commands' processes to the next
# What Snakemake sets for a shell command of its own.
THREADS = ("OMP", "GOTO", "OPENBLAS", "MKL", "VECLIB_MAXIMUM", "NUMEXPR")
# Files may be seen later where a job runs than where Snakemake does; to list their folder makes some file systems look.
WAIT = """for f in {files}; do n=0; until [ -e "$f" ] || [ $((n += 1)) -gt $((5 * {latency})) ]; do
ls -a "${{f%/*}}" > /dev/null 2>&1 || true; sleep 0.2; done; done"""
# Ends the process group that it leads when it cannot read any more, that is, when Snakemake has died.
WARDEN = "trap '' TERM; read _ && exit; kill -TERM 0; \"$@\"; sleep 30; kill -KILL 0"


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
        return SlurmAllocation()
    if settings.scheduler == "sge":
        return GridEngine(settings.sge_memory, settings.sge_gpu, settings.sge_parallel_environment)
    raise WorkflowError(f"--ngsgd-scheduler {settings.scheduler}: there are slurm, slurm-allocation and sge")


@dataclass
class Hooks:
    """What a workflow may want to be asked of its jobs.

    Attributes:
        begin: told that no job of a former call is under way any more.
        failed: told of a job that has failed, the reason, and how often it will be tried again: whether the workflow
            goes on as if it had not failed.
        keeps_others_waiting: whether a job is to be given up, though it is still under way.
    """

    begin: Callable[[], None] = lambda: None
    failed: Callable[[JobExecutorInterface, str, int], bool] = lambda job, reason, attempts_left: False
    keeps_others_waiting: Callable[[JobExecutorInterface], bool] = lambda job: False


hooks = Hooks()


class Executor(RemoteExecutor):  # type: ignore[misc]
    """See the module."""

    def __post_init__(self) -> None:
        self.cluster = cluster_of(self.workflow.executor_settings)
        self.mark = f"ngsgd-{digest(os.path.realpath(self.workflow.workdir_init))}"
        self.grown: dict[str, dict[str, int]] = {}
        self.warden: subprocess.Popen[bytes] | None = None
        self.next_seconds_between_status_checks = LOOK

    def run_jobs(self, jobs: list[JobExecutorInterface]) -> None:
        if self.warden is None:  # the results' lock is held by now
            self.end_former_jobs()
            self.warden = subprocess.Popen(
                ["sh", "-c", WARDEN, "sh", *self.cluster.last_order(self.mark)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,
            )
            self.warden_pid = self.warden.pid
        super().run_jobs(jobs)

    def end_former_jobs(self) -> None:
        """Cancels what a call left behind that died together with its machine."""
        try:
            while left := self.cluster.under_way(self.mark):
                self.logger.info(f"Cancelling {len(left)} jobs of a call that has died: {', '.join(left)}")
                self.cluster.cancel(left)
                time.sleep(1.0)
        except ClusterError as e:
            raise WorkflowError(str(e)) from None
        hooks.begin()

    def run_job(self, job: JobExecutorInterface) -> None:
        self.workflow.async_run(job.prepare())
        number = "" if job.attempt == 1 else f".try{job.attempt}"
        wildcards = [] if job.is_group() else job.wildcards
        name = ".".join([job.name, *map(str, wildcards)]) + f"{number}.{self.mark}"
        wait = self.workflow.executor_settings.retry_wait * 2.0 ** (job.attempt - 2) if job.attempt > 1 else 0.0
        info = SubmittedJobInfo(job, external_jobid=name, aux={"start": time.monotonic() + wait})
        if not wait:
            self.start(info)
        self.report_job_submission(info)

    def start(self, info: SubmittedJobInfo) -> None:
        """Hands a job to the scheduler."""
        job, aux = info.job, info.aux
        environment = self.cluster.environment(os.environ)
        # The jobs would end with this process where they run on the same machine, as they should not on a cluster.
        environment.pop(SCHEDULER, None)
        environment |= {f"{library}_NUM_THREADS": str(job.threads) for library in THREADS}
        aux["needs"] = self.needs(job)
        aux["begin"] = time.monotonic()
        aux["said"] = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  until the job is done with
        aux["process"] = subprocess.Popen(
            self.cluster.command(info.external_jobid, aux["needs"], f"{self.command(job)}\necho {DONE}"),
            stdin=subprocess.DEVNULL,
            stdout=aux["said"],
            stderr=subprocess.STDOUT,
            env=environment,
            process_group=self.warden_pid,
        )

    def needs(self, job: JobExecutorInterface) -> Needs:
        """What a job asks for: its resources, more of them where jobs of its rule have been seen to need more."""
        asked = {name: value for name, value in job.resources.items() if name in Needs.__dataclass_fields__}
        for resource, value in self.grown.get(job.name, {}).items():
            asked[resource] = max(asked[resource], value)
        return Needs(**{**asked, "threads": job.threads})

    def command(self, job: JobExecutorInterface) -> str:
        """A job's shell command, once its input is to be seen where it runs; else a Snakemake that makes the job."""
        if job.is_group() or not job.is_shell or self.workflow.deployment_settings.deployment_method:
            return f"set -e; {self.format_job_exec(job)}"
        waiting = WAIT.format(
            files=" ".join(map(shlex.quote, job.input)), latency=self.workflow.execution_settings.latency_wait
        )
        return f"set -euo pipefail; {waiting}; {job.shellcmd}"

    def jobs_end(self, info: SubmittedJobInfo) -> End | None:
        """How a job has ended whose command has; None for well.

        The scheduler's word is not enough: what the job itself says last is.
        """
        said: IO[str] = info.aux["said"]
        said.seek(0)
        text = said.read()
        if text.endswith(DONE):
            return None
        for log in info.job.log:
            with contextlib.suppress(OSError), open(log, encoding="utf-8", errors="replace") as f:
                text += "".join(deque(f, maxlen=LINES))
        return self.cluster.end(text, time.monotonic() - info.aux["begin"], info.aux["needs"])

    @property
    def cores(self) -> str:
        return "all"  # what the job is given, it may use

    def get_job_exec_prefix(self, job: JobExecutorInterface) -> str:
        return f"cd {shlex.quote(self.workflow.workdir_init)}"

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncIterator[SubmittedJobInfo]:
        for info in active_jobs:
            aux: dict[Any, Any] = info.aux
            if "given up" not in aux and self.keeps_others_waiting(info):
                aux["given up"] = "the others of its iteration have waited for it long enough"
                if "process" in aux:
                    self.give_up(info)
                else:
                    self.failed(info, End(aux["given up"]))
                    continue
            if "process" not in aux:
                if time.monotonic() >= aux["start"]:
                    self.start(info)
                yield info
            elif aux["process"].poll() is None:
                if time.monotonic() > aux.get("kill", math.inf):
                    aux["process"].kill()  # a pending qrsh heeds nothing else
                yield info
            elif end := self.jobs_end(info):
                self.failed(info, End(aux["given up"]) if "given up" in aux else end)
            else:
                for folder in {os.path.dirname(output) or "." for output in info.job.output}:
                    with contextlib.suppress(OSError):
                        os.listdir(folder)  # has some file systems look for what is new
                self.report_job_success(info)

    def keeps_others_waiting(self, info: SubmittedJobInfo) -> bool:
        """Asks the workflow once a second: it looks at files for an answer."""
        now = time.monotonic()
        if now < info.aux.get("ask", 0.0):
            return False
        info.aux["ask"] = now + 1.0
        return bool(hooks.keeps_others_waiting(info.job))

    def failed(self, info: SubmittedJobInfo, end: End) -> None:
        """Reports a job that has failed, unless the workflow can do without it."""
        job = info.job
        attempts_left = 0 if "given up" in info.aux else job.restart_times + 1 - job.attempt
        if end.lacking:
            self.grow(job, end.lacking)
        if hooks.failed(job, end.reason, attempts_left):
            self.logger.warning(f"{info.external_jobid}: {end.reason}; going on without it")
            self.report_job_success(info)
        else:
            self.report_job_error(info, msg=f"{end.reason}. ")

    def grow(self, job: JobExecutorInterface, lacking: str) -> None:
        """Has the jobs of a rule ask for twice as much of what one of them lacked from now on."""
        resource = {"memory": "mem_mb", "time": "runtime"}[lacking]
        asked = getattr(self.needs(job), resource)
        if asked is not None and not job.is_group():
            grown = self.grown.setdefault(job.rule.name, {})
            grown[resource] = max(2 * asked, grown.get(resource, 0))
            self.logger.warning(
                f"{job.rule.name}: {asked} was too little for {resource}, further jobs ask for {grown[resource]}; "
                f"the configuration or the profile should"
            )

    def give_up(self, info: SubmittedJobInfo) -> None:
        """Cancels a job that the scheduler has."""
        info.aux["process"].terminate()
        info.aux["kill"] = time.monotonic() + PATIENCE
        with contextlib.suppress(ClusterError):  # the command has been told; that one is enough for most
            self.cluster.cancel(self.cluster.under_way(info.external_jobid))

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        for info in active_jobs:
            if "process" in info.aux:
                info.aux["process"].terminate()
        info.aux["kill"] = time.monotonic() + PATIENCE
        with contextlib.suppress(ClusterError):
            self.cluster.cancel(self.cluster.under_way(self.mark))

    def shutdown(self) -> None:
        super().shutdown()
        if self.warden is not None and self.warden.stdin is not None:
            self.warden.stdin.write(b"\n")
            self.warden.stdin.close()
