"""What holds on every scheduler: all models have the bytes of an undisturbed run without a cluster."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from snakemake_executor_plugin_ngsgd.gridengine import GridEngine
from snakemake_executor_plugin_ngsgd.slurm import Slurm

from ..workflow.conftest import Workplace
from .conftest import await_, begin, copy_of, end, kill, processes, trained, working

pytestmark = pytest.mark.slow


@pytest.fixture(params=["on_slurm", "on_grid_engine"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Workplace:
    return copy_of(request.getfixturevalue(request.param), tmp_path)


def test_a_cluster_gives_the_bytes_of_one_machine(place: Workplace, longer: Workplace) -> None:
    outcome = end(begin(place, target="all"))
    assert outcome.status == 0, outcome.text
    assert outcome.jobs["train"] == 6
    assert place.models() == longer.models()
    assert end(begin(place, target="all")).jobs == {}


def test_a_killed_job_is_tried_again(place: Workplace, longer: Workplace) -> None:
    process = begin(place, "--ngsgd-retry-wait", "4")
    working(place, 1, 2)
    killed = time.time()
    kill(place, signal.SIGKILL, "train", "results/run", "1", "2")
    assert working(place, 1, 2, attempt=2).started >= killed + 4.0
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
    assert "it reached its limit of time" in outcome.text
    assert "train.run.0.1: runtime=1 was too little, it gets twice as much" in outcome.text
    assert trained(place) == trained(longer)


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_jobs_end_with_snakemake_and_the_next_call_goes_on(
    place: Workplace, longer: Workplace, sign: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = begin(place)
    working(place, 1, 1)
    working(place, 1, 2)
    process.send_signal(sign)
    process.communicate(timeout=60)
    await_(lambda: not processes(place, "train"), "the end of its jobs' processes", timeout=15.0)
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    cluster = Slurm() if "SLURM_CONF" in place.environment else GridEngine()
    await_(lambda: not cluster.active_jobs(""), "the end of its jobs", timeout=15.0)
    made = place.models()
    assert "models/1.safetensors" in made
    assert "models/2.safetensors" not in made
    outcome = end(begin(place))
    assert outcome.status == 0, outcome.text
    assert outcome.jobs["train"] == 2
    assert trained(place) == trained(longer)
