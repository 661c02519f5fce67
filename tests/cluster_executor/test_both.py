"""Tests on both schedulers: all models have the bytes of an undisturbed run without a cluster."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from snakemake_executor_plugin_ngsgd.gridengine import GridEngine
from snakemake_executor_plugin_ngsgd.slurm import Slurm

from ..workflow.conftest import Workplace
from .conftest import (
    copy_run,
    kill,
    model_hashes,
    processes,
    start_snakemake,
    wait_for_end,
    wait_until,
    wait_until_running,
)

pytestmark = pytest.mark.slow


@pytest.fixture(params=["slurm_run", "grid_engine_run"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Workplace:
    return copy_run(request.getfixturevalue(request.param), tmp_path)


def test_run_has_the_models_of_a_run_without_a_cluster(place: Workplace, reference: Workplace) -> None:
    outcome = wait_for_end(start_snakemake(place, target="all"))
    assert outcome.status == 0, outcome.text
    assert outcome.jobs["train"] == 6
    assert place.models() == reference.models()
    assert wait_for_end(start_snakemake(place, target="all")).jobs == {}


def test_killed_job_is_retried(place: Workplace, reference: Workplace) -> None:
    process = start_snakemake(place, "--ngsgd-retry-wait", "4")
    wait_until_running(place, 1, 2)
    killed = time.time()
    kill(place, signal.SIGKILL, "train", "1", "2")
    assert wait_until_running(place, 1, 2, attempt=2).started >= killed + 4.0
    outcome = wait_for_end(process)
    assert outcome.status == 0, outcome.text
    assert outcome.jobs["train"] == 5
    assert model_hashes(place) == model_hashes(reference)


def test_job_over_its_time_limit_is_retried_with_more(place: Workplace, reference: Workplace) -> None:
    place.config["resources"] = {"train": {"runtime": 1}}
    process = start_snakemake(place)
    wait_until_running(place, 0, 1)
    kill(place, signal.SIGSTOP, "train", "0", "1")
    outcome = wait_for_end(process)
    assert outcome.status == 0, outcome.text
    assert "it reached its limit of time" in outcome.text
    assert "train.run.0.1: runtime=1 was too little, it gets twice as much" in outcome.text
    assert model_hashes(place) == model_hashes(reference)


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_jobs_end_with_snakemake_and_the_next_call_resumes(
    place: Workplace, reference: Workplace, sign: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start_snakemake(place)
    wait_until_running(place, 1, 1)
    wait_until_running(place, 1, 2)
    process.send_signal(sign)
    process.communicate(timeout=60)
    wait_until(lambda: not processes(place, "train"), "the end of its jobs' processes", timeout=15.0)
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    cluster = Slurm() if "SLURM_CONF" in place.environment else GridEngine()
    wait_until(lambda: not cluster.active_jobs(""), "the end of its jobs", timeout=15.0)
    models = place.models()
    assert "models/1.safetensors" in models
    assert "models/2.safetensors" not in models
    outcome = wait_for_end(start_snakemake(place))
    assert outcome.status == 0, outcome.text
    assert outcome.jobs["train"] == 2
    assert model_hashes(place) == model_hashes(reference)
