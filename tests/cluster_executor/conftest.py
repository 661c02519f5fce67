"""Real schedulers on this machine, and training runs long enough to be disturbed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from ngsgd.training.progress import Progress, read_progress

from ..workflow.conftest import SMALL, Outcome, Workplace
from .gridengine import GridEngine
from .slurm import Slurm

# Three iterations of two jobs that take some seconds each.
LONGER_CONFIG = SMALL | {"samples_per_iter": 2500, "minibatch_size": 4, "num_epochs": 3}


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """Starts a SLURM cluster of four nodes with two simulated GPUs each."""
    if reason := Slurm.available():
        pytest.skip(reason)
    with Slurm(nodes=4) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def grid_engine() -> Iterator[GridEngine]:
    """Starts a Grid Engine of one host with two simulated GPUs."""
    if reason := GridEngine.available():
        pytest.skip(reason)
    with GridEngine(queues={"gpu.q": 8}) as cluster:
        yield cluster


def prepare_run(folder: Path, reference: Workplace, profile: str, environment: Mapping[str, str]) -> Workplace:
    """Makes everything of a run that precedes its first iteration, on a cluster."""
    place = Workplace(folder, reference.config, profile, environment)
    outcome = place.snakemake("-j", "8", "results/run/models/0.safetensors", "results/run/jobs/0.1.safetensors")
    assert outcome.status == 0, outcome.text
    (place.run / "jobs/0.1.safetensors").unlink()
    (place.run / "progress/0.1.json").unlink()
    return place


@pytest.fixture(scope="session")
def slurm_run(tmp_path_factory: pytest.TempPathFactory, reference: Workplace, slurm: Slurm) -> Workplace:
    return prepare_run(tmp_path_factory.mktemp("slurm"), reference, "slurm", slurm.env)


@pytest.fixture(scope="session")
def grid_engine_run(
    tmp_path_factory: pytest.TempPathFactory, reference: Workplace, grid_engine: GridEngine
) -> Workplace:
    return prepare_run(tmp_path_factory.mktemp("sge"), reference, "sge", grid_engine.env)


def copy_run(place: Workplace, folder: Path) -> Workplace:
    """Returns a copy of a run for a test that disturbs it."""
    shutil.copytree(place.folder, folder / "place", symlinks=True)
    copy = Workplace(folder / "place", dict(place.config), environment=place.environment)
    copy.profile = place.profile
    return copy


@pytest.fixture(autouse=True)
def no_jobs_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Cancels the jobs that a failed test has left on SLURM."""
    yield
    if "slurm" in request.fixturenames:
        cluster = request.getfixturevalue("slurm")
        for job in cluster.jobs():
            if job.state in ("RUNNING", "PENDING"):
                cluster.run("scancel", str(job.id))


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, few_digits: Path) -> Workplace:
    """Makes a whole run without a cluster, to compare models with."""
    place = Workplace(tmp_path_factory.mktemp("reference"), LONGER_CONFIG | {"digits_file": str(few_digits)})
    outcome = place.snakemake()
    assert outcome.status == 0, outcome.text
    return place


def wait_until(condition: Callable[[], object], description: str, timeout: float = 90.0) -> None:
    """Waits until a condition holds; fails with `description` after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"{description}: not within {timeout} s"
        time.sleep(0.05)


def wait_until_running(place: Workplace, iteration: int, job: int, attempt: int = 1) -> Progress:
    """Waits until a training job runs and returns its progress."""
    path = place.run / f"progress/{iteration}.{job}.json"

    def is_running() -> bool:
        progress = read_progress(path)
        assert progress is None or progress.state != "done", (
            f"job {iteration}.{job} was done before it was seen running"
        )
        return progress is not None and progress.state == "running" and progress.attempt >= attempt

    wait_until(is_running, f"job {iteration}.{job} running")
    progress = read_progress(path)
    assert progress is not None
    return progress


LAST_MODEL = "results/run/models/2.safetensors"  # target of the disturbed runs


def start_snakemake(place: Workplace, *arguments: str, target: str = LAST_MODEL) -> subprocess.Popen[str]:
    """Starts Snakemake on a cluster."""
    return place.start(target, "-j", "8", "--ngsgd-retry-wait", "1", *arguments)


def model_hashes(place: Workplace) -> dict[str, str]:
    """Returns the hashes of the models up to `LAST_MODEL`, by name."""
    names = [f"models/{x}" for x in (0, 1, 2)] + [f"jobs/{x}.{n}" for x in (0, 1) for n in (1, 2)]
    models = place.models()
    return {name: models[f"{name}.safetensors"] for name in names}


def wait_for_end(process: subprocess.Popen[str]) -> Outcome:
    """Waits for the end of Snakemake."""
    text = process.communicate(timeout=300)[0]
    return Outcome(process.returncode, text)


def processes(place: Workplace, *words: str) -> list[int]:
    """Returns the ids of the `ngsgd` processes of a run with these arguments."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            arguments = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            here = (process / "cwd").resolve() == place.folder.resolve()
        except OSError:
            continue
        if process.name.isdecimal() and here and "python" in arguments[0] and arguments[2 : 2 + len(words)] == [*words]:
            found.append(int(process.name))
    return found


def kill(place: Workplace, sign: signal.Signals, *words: str) -> None:
    found = processes(place, *words)
    assert found, f"no process {' '.join(words)}"
    for pid in found:
        os.kill(pid, sign)
