"""The plugin's registry of schedulers, and its interface to a workflow, without a scheduler."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Self

import pytest
from snakemake_interface_common.exceptions import WorkflowError

from ngsgd.errors import ClusterError
from snakemake_executor_plugin_ngsgd import ExecutorSettings, cancel_former_jobs, set_job_policy
from snakemake_executor_plugin_ngsgd import executor as executor_module
from snakemake_executor_plugin_ngsgd import scheduler as scheduler_module
from snakemake_executor_plugin_ngsgd.executor import workflow_mark
from snakemake_executor_plugin_ngsgd.gridengine import GridEngine
from snakemake_executor_plugin_ngsgd.policy import NeedsEveryJob, job_policy
from snakemake_executor_plugin_ngsgd.scheduler import make_scheduler, register_scheduler
from snakemake_executor_plugin_ngsgd.slurm import Slurm, SlurmAllocation

LOGGER = logging.getLogger(__name__)


class Listed(Slurm):
    """A scheduler with a list of jobs, and no cluster."""

    def __init__(self, jobs: dict[str, str], stuck: bool = False) -> None:
        self.jobs, self.stuck = jobs, stuck

    def active_jobs(self, mark: str) -> dict[str, str]:
        return {number: name for number, name in self.jobs.items() if name.endswith(mark)}

    def cancel(self, numbers: Sequence[str]) -> None:
        for number in () if self.stuck else numbers:
            del self.jobs[number]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Listed], ExecutorSettings]:
    """Registers a scheduler for the test, and returns the settings that select it."""
    monkeypatch.setattr(executor_module.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(scheduler_module, "_REGISTRY", dict(scheduler_module._REGISTRY))

    def register(scheduler: Listed) -> ExecutorSettings:
        @register_scheduler("listed")
        class Prepared(Slurm):
            @classmethod
            def from_settings(cls, settings: ExecutorSettings) -> Self:
                return scheduler  # type: ignore[return-value]

        return ExecutorSettings(scheduler="listed")

    return register


def test_schedulers_are_made_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(make_scheduler(ExecutorSettings())) is Slurm
    settings = ExecutorSettings("sge", sge_memory="h_vmem", sge_gpu="gpus", sge_parallel_environment="omp")
    assert make_scheduler(settings) == GridEngine("h_vmem", "gpus", "omp")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert type(make_scheduler(ExecutorSettings("slurm-allocation"))) is SlurmAllocation
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(WorkflowError, match="not in an allocation"):
        make_scheduler(ExecutorSettings("slurm-allocation"))


def test_an_unknown_scheduler_is_refused_with_the_names_of_the_others() -> None:
    with pytest.raises(WorkflowError, match=r"--ngsgd-scheduler pbs: .* sge, slurm, slurm-allocation"):
        make_scheduler(ExecutorSettings("pbs"))


def test_a_scheduler_is_registered_once(use: Callable[[Listed], ExecutorSettings]) -> None:
    use(Listed({}))
    with pytest.raises(ValueError, match="listed is registered already"):
        use(Listed({}))


def test_a_workflow_without_a_policy_needs_all_jobs() -> None:
    workflow = SimpleNamespace()
    assert not job_policy(workflow).on_failure(None, "it failed", 0)
    assert not job_policy(workflow).is_straggler(None)
    policy = NeedsEveryJob()
    set_job_policy(workflow, policy)
    assert job_policy(workflow) is policy


def test_former_jobs_of_the_same_directory_are_cancelled(use: Callable[[Listed], ExecutorSettings]) -> None:
    workflow = SimpleNamespace(workdir_init="/somewhere")
    former, other = f"train.run.0.1.{workflow_mark(workflow)}", "train.run.0.1.ngsgd-0"
    scheduler = Listed({"1": former, "2": other})
    workflow.executor_settings = use(scheduler)
    assert cancel_former_jobs(workflow, LOGGER)
    assert scheduler.jobs == {"2": other}


def test_a_former_job_that_stays_is_an_error(use: Callable[[Listed], ExecutorSettings]) -> None:
    workflow = SimpleNamespace(workdir_init="/somewhere")
    workflow.executor_settings = use(Listed({"17": workflow_mark(workflow)}, stuck=True))
    with pytest.raises(ClusterError, match="jobs 17 of an earlier call are still active"):
        cancel_former_jobs(workflow, LOGGER)


def test_other_executors_cancel_nothing() -> None:
    assert not cancel_former_jobs(SimpleNamespace(executor_settings=None), LOGGER)
