"""Runs on a real Grid Engine: all models have the bytes of an undisturbed run without a cluster."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from ..workflow.conftest import Workplace
from .conftest import await_, begin, end, kill, processes, trained, working
from .gridengine import GridEngine

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, longer: Workplace, grid_engine: GridEngine) -> Workplace:
    """A run of which all is there that is made before its first iteration."""
    place = Workplace(tmp_path_factory.mktemp("prepared"), longer.config, "sge", grid_engine.env)
    outcome = place.snakemake("-j", "8", "results/run/models/0.safetensors", "results/run/jobs/0.1.safetensors")
    assert outcome.status == 0, outcome.text
    (place.run / "jobs/0.1.safetensors").unlink()
    (place.run / "progress/0.1.json").unlink()
    return place


@pytest.fixture
def place(prepared: Workplace, grid_engine: GridEngine, tmp_path: Path) -> Workplace:
    """A copy of it to be attacked."""
    shutil.copytree(prepared.folder, tmp_path / "place", symlinks=True)
    return Workplace(tmp_path / "place", dict(prepared.config), "sge", grid_engine.env)


def test_a_cluster_gives_the_bytes_of_one_machine(place: Workplace, longer: Workplace) -> None:
    outcome = end(begin(place))
    assert outcome.status == 0, outcome.text
    assert outcome.jobs["train"] == 4
    assert trained(place) == trained(longer)
    assert end(begin(place)).jobs == {}


def test_a_deleted_job_is_tried_again(place: Workplace, longer: Workplace, grid_engine: GridEngine) -> None:
    process = begin(place)
    grid_engine.command("qdel", str(working(place, 1, 1).number))
    outcome = end(process)
    assert outcome.status == 0, outcome.text
    assert outcome.jobs["train"] == 5
    assert trained(place) == trained(longer)


def test_a_killed_job_is_tried_again(place: Workplace, longer: Workplace) -> None:
    process = begin(place)
    working(place, 1, 2)
    kill(place, signal.SIGKILL, "train", "results/run", "1", "2")
    outcome = end(process)
    assert outcome.status == 0, outcome.text
    assert outcome.jobs["train"] == 5
    assert trained(place) == trained(longer)


def test_a_job_over_its_limit_of_time_is_given_more(place: Workplace, longer: Workplace) -> None:
    place.config["resources"] = {"train": {"runtime": 1}}
    process = begin(place)
    working(place, 0, 1)
    kill(place, signal.SIGSTOP, "train", "results/run", "0", "1")
    outcome = end(process)
    assert outcome.status == 0, outcome.text
    assert "train.run.0.1: runtime=1 was too little, it gets twice as much" in outcome.text
    assert trained(place) == trained(longer)


def test_the_execution_daemon_may_die(place: Workplace, longer: Workplace, grid_engine: GridEngine) -> None:
    process = begin(place)
    working(place, 1, 1)
    grid_engine.kill_exec()
    grid_engine.start_exec()
    outcome = end(process)
    assert outcome.status == 0, outcome.text
    assert trained(place) == trained(longer)


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_jobs_end_with_snakemake_and_the_next_call_goes_on(
    place: Workplace, longer: Workplace, grid_engine: GridEngine, sign: signal.Signals
) -> None:
    process = begin(place)
    working(place, 1, 1)
    working(place, 1, 2)
    process.send_signal(sign)
    process.communicate(timeout=60)
    await_(lambda: not processes(place, "train"), "the end of their processes", timeout=15.0)
    await_(lambda: not grid_engine.jobs(), "the end of its jobs", timeout=15.0)
    outcome = end(begin(place))
    assert outcome.status == 0, outcome.text
    assert outcome.jobs["train"] == 2
    assert trained(place) == trained(longer)


def test_gpus_are_asked_for_and_dealt_out(place: Workplace, grid_engine: GridEngine) -> None:
    place.config["device"] = "cuda"
    outcome = end(begin(place, "--retries", "0"))
    assert "device: cuda: this machine has no usable GPU" in outcome.last_line  # in name only
    place.config["resources"] = {"train": {"gpus": 3}}
    process = begin(place, "--retries", "0")
    await_(lambda: [job for job in grid_engine.jobs() if job.state == "qw"], "a job that waits for what there is not")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    await_(lambda: not grid_engine.jobs(), "the end of its jobs", timeout=30.0)
