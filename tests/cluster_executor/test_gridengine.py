"""Runs on a real Grid Engine: all models have the bytes of an undisturbed run without a cluster."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from ..workflow.conftest import Workplace
from .conftest import await_, begin, copy_of, end, trained, working
from .gridengine import GridEngine, Job

pytestmark = pytest.mark.slow


@pytest.fixture
def place(on_grid_engine: Workplace, tmp_path: Path) -> Workplace:
    return copy_of(on_grid_engine, tmp_path)


def test_a_deleted_job_is_tried_again(place: Workplace, longer: Workplace, grid_engine: GridEngine) -> None:
    process = begin(place)
    grid_engine.command("qdel", str(working(place, 1, 1).number))
    outcome = end(process)
    assert outcome.status == 0, outcome.text
    assert outcome.jobs["train"] == 5
    assert trained(place) == trained(longer)


def test_the_execution_daemon_may_die(place: Workplace, longer: Workplace, grid_engine: GridEngine) -> None:
    process = begin(place)
    working(place, 1, 1)
    grid_engine.kill_exec()
    grid_engine.start_exec()
    outcome = end(process)
    assert outcome.status == 0, outcome.text
    assert trained(place) == trained(longer)


def test_the_master_may_restart(place: Workplace, longer: Workplace, grid_engine: GridEngine) -> None:
    process = begin(place)
    working(place, 0, 1)
    grid_engine.restart_master()
    # It finds the new master by itself half a minute later.
    grid_engine.kill_exec()
    grid_engine.start_exec()
    outcome = end(process)
    assert outcome.status == 0, outcome.text
    assert trained(place) == trained(longer)


def test_gpus_are_asked_for_and_dealt_out(place: Workplace, grid_engine: GridEngine) -> None:
    place.config["device"] = "cuda"
    outcome = end(begin(place, "--retries", "0"))
    assert "device: cuda: this machine has no usable GPU" in outcome.last_line  # in name only
    place.config["resources"] = {"train": {"gpus": 3}}
    process = begin(place, "--retries", "0")

    def waiting() -> list[Job]:
        return [job for job in grid_engine.jobs() if job.state == "qw"]

    await_(waiting, "a job that waits for what there is not")
    # Jobs of other tests may stay listed: Grid Engine does not learn of their ends while a daemon of its is away.
    mark = waiting()[0].name.rpartition(".")[2]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)

    def left() -> list[Job]:
        return [job for job in grid_engine.jobs() if job.name.endswith(mark) and "d" not in job.state]

    await_(lambda: not left(), "the end of its jobs", timeout=30.0)
