"""Decisions about jobs that the executor leaves to the workflow."""

from __future__ import annotations

from typing import Protocol

from snakemake_interface_executor_plugins.jobs import JobExecutorInterface
from snakemake_interface_executor_plugins.workflow import WorkflowExecutorInterface


class JobPolicy(Protocol):
    """Decides which jobs a workflow can do without."""

    def on_failure(self, job: JobExecutorInterface, reason: str, attempts_left: int) -> bool:
        """Handles the failure of a job.

        Args:
            job: the failed job.
            reason: why it failed, for people.
            attempts_left: number of times that the job can still be tried.

        Returns:
            Whether the job counts as successful, so that the workflow goes on without it.
        """

    def is_straggler(self, job: JobExecutorInterface) -> bool:
        """Returns whether to cancel a job that has not ended; called about once a second for each job."""


class NeedsEveryJob:
    """The default policy: waits for every job and needs all of them."""

    def on_failure(self, job: JobExecutorInterface, reason: str, attempts_left: int) -> bool:
        return False

    def is_straggler(self, job: JobExecutorInterface) -> bool:
        return False


def set_job_policy(workflow: WorkflowExecutorInterface, policy: JobPolicy) -> None:
    """Makes the executor of a workflow use a policy; other executors ignore it."""
    workflow.ngsgd_job_policy = policy


def job_policy(workflow: WorkflowExecutorInterface) -> JobPolicy:
    """Returns the policy of a workflow: the default one if none was set."""
    policy: JobPolicy = getattr(workflow, "ngsgd_job_policy", _DEFAULT)
    return policy


_DEFAULT = NeedsEveryJob()
