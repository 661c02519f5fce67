"""Real schedulers on this machine, and runs on them long enough to be attacked."""

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

# Three iterations of two jobs of some seconds each.
LONGER = SMALL | {"samples_per_iter": 2500, "minibatch_size": 4, "num_epochs": 3}


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """Four nodes with two GPUs each, if only in name."""
    if reason := Slurm.available():
        pytest.skip(reason)
    with Slurm(nodes=4) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def grid_engine() -> Iterator[GridEngine]:
    """One host, with two GPUs if only in name."""
    if reason := GridEngine.available():
        pytest.skip(reason)
    with GridEngine(queues={"gpu.q": 8}) as cluster:
        yield cluster


def prepared(folder: Path, longer: Workplace, profile: str, environment: Mapping[str, str]) -> Workplace:
    """A run on a cluster of which all is there that is made before its first iteration."""
    place = Workplace(folder, longer.config, profile, environment)
    outcome = place.snakemake("-j", "8", "results/run/models/0.safetensors", "results/run/jobs/0.1.safetensors")
    assert outcome.status == 0, outcome.text
    (place.run / "jobs/0.1.safetensors").unlink()
    (place.run / "progress/0.1.json").unlink()
    return place


@pytest.fixture(scope="session")
def on_slurm(tmp_path_factory: pytest.TempPathFactory, longer: Workplace, slurm: Slurm) -> Workplace:
    return prepared(tmp_path_factory.mktemp("slurm"), longer, "slurm", slurm.env)


@pytest.fixture(scope="session")
def on_grid_engine(tmp_path_factory: pytest.TempPathFactory, longer: Workplace, grid_engine: GridEngine) -> Workplace:
    return prepared(tmp_path_factory.mktemp("sge"), longer, "sge", grid_engine.env)


def copy_of(place: Workplace, folder: Path) -> Workplace:
    """A run to be attacked."""
    shutil.copytree(place.folder, folder / "place", symlinks=True)
    copy = Workplace(folder / "place", dict(place.config), environment=place.environment)
    copy.profile = place.profile
    return copy


@pytest.fixture(autouse=True)
def no_jobs_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test that failed has left on a cluster is not to meet the next one."""
    yield
    if "slurm" in request.fixturenames:
        cluster = request.getfixturevalue("slurm")
        for job in cluster.jobs():
            if job.state in ("RUNNING", "PENDING"):
                cluster.run("scancel", str(job.id))


@pytest.fixture(scope="session")
def longer(tmp_path_factory: pytest.TempPathFactory, few_digits: Path) -> Workplace:
    """A finished run, made without a cluster."""
    place = Workplace(tmp_path_factory.mktemp("longer"), LONGER | {"digits_file": str(few_digits)})
    outcome = place.snakemake()
    assert outcome.status == 0, outcome.text
    return place


def await_(condition: Callable[[], object], what: str, timeout: float = 90.0) -> None:
    """Waits until something is the case."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {timeout} s"
        time.sleep(0.05)


def working(place: Workplace, iteration: int, job: int, attempt: int = 1) -> Progress:
    """What a training job tells when it has begun to work."""
    path = place.run / f"progress/{iteration}.{job}.json"

    def at_it() -> bool:
        told = read_progress(path)
        assert told is None or told.state != "done", f"job {iteration}.{job} is done before it was seen at work"
        return told is not None and told.state == "running" and told.attempt >= attempt

    await_(at_it, f"job {iteration}.{job} at work")
    told = read_progress(path)
    assert told is not None
    return told


LAST = "results/run/models/2.safetensors"  # as far as the runs under attack go


def begin(place: Workplace, *arguments: str, target: str = LAST) -> subprocess.Popen[str]:
    """Snakemake on a cluster, started."""
    return place.start(target, "-j", "8", "--ngsgd-retry-wait", "1", *arguments)


def trained(place: Workplace) -> dict[str, str]:
    """A hash of each model as far as the runs under attack go."""
    made = [f"models/{x}" for x in (0, 1, 2)] + [f"jobs/{x}.{n}" for x in (0, 1) for n in (1, 2)]
    models = place.models()
    return {name: models[f"{name}.safetensors"] for name in made}


def end(process: subprocess.Popen[str]) -> Outcome:
    """Snakemake, to its end."""
    text = process.communicate(timeout=300)[0]
    return Outcome(process.returncode, text)


def processes(place: Workplace, *words: str) -> list[int]:
    """The processes of `ngsgd` that work in a place with these arguments."""
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
