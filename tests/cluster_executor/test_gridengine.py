"""Runs on a real Grid Engine: all models have the bytes of an undisturbed run without a cluster."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from ..workflow.conftest import Workplace
from .conftest import copy_run, model_hashes, start_snakemake, wait_for_end, wait_until, wait_until_running
from .gridengine import GridEngine, Job

pytestmark = pytest.mark.slow


@pytest.fixture
def place(grid_engine_run: Workplace, tmp_path: Path) -> Workplace:
    return copy_run(grid_engine_run, tmp_path)


def test_deleted_job_is_retried(place: Workplace, reference: Workplace, grid_engine: GridEngine) -> None:
    process = start_snakemake(place)
    grid_engine.command("qdel", str(wait_until_running(place, 1, 1).number))
    outcome = wait_for_end(process)
    assert outcome.status == 0, outcome.text
    assert outcome.jobs["train"] == 5
    assert model_hashes(place) == model_hashes(reference)


def test_run_survives_the_death_of_the_execution_daemon(
    place: Workplace, reference: Workplace, grid_engine: GridEngine
) -> None:
    process = start_snakemake(place)
    wait_until_running(place, 1, 1)
    grid_engine.kill_exec()
    grid_engine.start_exec()
    outcome = wait_for_end(process)
    assert outcome.status == 0, outcome.text
    assert model_hashes(place) == model_hashes(reference)


def test_run_survives_a_restart_of_the_master(place: Workplace, reference: Workplace, grid_engine: GridEngine) -> None:
    process = start_snakemake(place)
    wait_until_running(place, 0, 1)
    grid_engine.restart_master()
    # The execution daemon would find the new master by itself half a minute later.
    grid_engine.kill_exec()
    grid_engine.start_exec()
    outcome = wait_for_end(process)
    assert outcome.status == 0, outcome.text
    assert model_hashes(place) == model_hashes(reference)


def test_training_on_cuda_requests_gpus_and_waits_for_them(place: Workplace, grid_engine: GridEngine) -> None:
    place.config["device"] = "cuda"
    outcome = wait_for_end(start_snakemake(place, "--retries", "0"))
    assert "device: cuda: this machine has no usable GPU" in outcome.last_line  # the GPUs are simulated
    place.config["resources"] = {"train": {"gpus": 3}}
    process = start_snakemake(place, "--retries", "0")

    def waiting() -> list[Job]:
        return [job for job in grid_engine.jobs() if job.state == "qw"]

    wait_until(waiting, "a job that waits for more GPUs than there are")
    # Jobs of other tests may stay listed, since Grid Engine misses the ends of jobs while one of its daemons is down.
    mark = waiting()[0].name.rpartition(".")[2]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)

    def remaining() -> list[Job]:
        return [job for job in grid_engine.jobs() if job.name.endswith(mark) and "d" not in job.state]

    wait_until(lambda: not remaining(), "the end of its jobs", timeout=30.0)
