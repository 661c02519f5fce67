"""Requests on a real SLURM: what a job gets of a profile, and of the environment of the call."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from ..workflow.conftest import SNAKEMAKE
from .slurm import Slurm

PARTITIONED = {"Partition": "urgent", "MinMemoryCPU": "100M"}  # the cluster's default memory


def prepare(folder: Path, resources: dict[str, object], scheduler: str = "slurm") -> list[str | Path]:
    """Writes a workflow of one rule and a profile with default resources, and returns the call."""
    (folder / "Snakefile").write_text('rule a:\n    output: "a.txt"\n    shell: "echo $SLURM_JOB_ID > {output}"\n')
    (folder / "profile").mkdir()
    profile = {"executor": "ngsgd", "ngsgd-scheduler": scheduler, "jobs": 2, "latency-wait": 10}
    (folder / "profile/config.yaml").write_text(json.dumps(profile | {"default-resources": resources}))
    return [SNAKEMAKE, "--profile", "profile"]


def job_of(folder: Path, slurm: Slurm) -> dict[str, str]:
    """Returns SLURM's record of the job that has run."""
    return slurm.job(int((folder / "a.txt").read_text()))


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"slurm_partition": "urgent"}, PARTITIONED),
        ({"mem": "2GB"}, {"MinMemoryNode": "2000M"}),
        ({"mem_mb_per_cpu": 200, "cpus_per_task": 2}, {"MinMemoryCPU": "200M", "NumCPUs": "2"}),
        ({"runtime": "2h", "mem_mb": 0, "gpu": 1}, {"TimeLimit": "02:00:00", "MinMemoryCPU": "100M"}),
        ({"extra": "--gpus=1", "partition": "main,urgent", "runtime": 3}, {"TimeLimit": "00:03:00"}),
        ({"gres": "gpu:1", "partition": "urgent"}, PARTITIONED),
        ({"slurm_extra": "'--gpus-per-task=1 --exclusive'"}, {"OverSubscribe": "NO", "MinMemoryCPU": "100M"}),
    ],
)
def test_profile_is_requested_and_nothing_else(
    tmp_path: Path, slurm: Slurm, resources: dict[str, object], expected: dict[str, str]
) -> None:
    """Snakemake adds a default of 1000 MB to any default resources, which no job may ask for."""
    done = subprocess.run(prepare(tmp_path, resources), cwd=tmp_path, env=slurm.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    job = job_of(tmp_path, slurm)
    assert {name: job.get(name) for name in expected} == expected, job
    if "gpu" in json.dumps(resources):
        assert "gpu:1" in "".join(value for name, value in job.items() if name.startswith("Tres")).replace("=", ":")


@pytest.mark.parametrize(
    ("resources", "scheduler", "line"),
    [
        ({"clusters": "other"}, "slurm", "resource clusters of rule a: set the environment variable SLURM_CLUSTERS"),
        ({"nodes": 2}, "slurm", "resource nodes=2: a job is one process on one node"),
        ({"slurm_nice": 5}, "slurm", "resource slurm_nice of rule a: no resource of this executor"),
        ({"constraint": "v100"}, "sge", "resource constraint of rule a: this scheduler has no such request"),
        ({"mem_mb_per_cpu": "8G"}, "slurm", "resource mem_mb_per_cpu=8G: expected a whole number"),
    ],
)
def test_resource_without_a_meaning_is_refused_by_name(
    tmp_path: Path, resources: dict[str, object], scheduler: str, line: str
) -> None:
    done = subprocess.run(prepare(tmp_path, resources, scheduler), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert line in done.stderr
    assert not (tmp_path / "a.txt").exists()


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_PARTITION": "urgent"},
        {"SBATCH_PARTITION": "urgent"},
        {"SLURM_PARTITION": "urgent", "SBATCH_PARTITION": "main"},
    ],
)
def test_defaults_of_the_environment_reach_the_job(tmp_path: Path, slurm: Slurm, environment: dict[str, str]) -> None:
    # As in the shell of an allocation with other resources.
    outer = {"SLURM_JOB_PARTITION": "main", "SLURM_JOB_ID": "99999", "SLURM_NTASKS": "7", "SLURM_MEM_PER_NODE": "1"}
    done = subprocess.run(
        prepare(tmp_path, {"runtime": 5}),
        cwd=tmp_path,
        env=slurm.env | outer | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    job = job_of(tmp_path, slurm)
    assert {name: job.get(name) for name in PARTITIONED} == PARTITIONED
    assert job["NumTasks"] == "1"


@pytest.mark.parametrize("scheduler", ["slurm", "slurm-allocation"])
def test_allocation_around_the_call(tmp_path: Path, slurm: Slurm, scheduler: str) -> None:
    """Variables that describe the resources of the allocation contradict the jobs' requests."""
    command = shlex.join(map(str, prepare(tmp_path, {"mem_mb": 150}, scheduler)))
    harmful = "SLURM_TRES_PER_TASK=cpu:7 SLURM_CPU_BIND=map_cpu:99 SLURM_GPUS_PER_TASK=3"
    number = slurm.run(
        "sbatch", "--parsable", "--wait", "--ntasks=2", "--mem-per-cpu=200", f"--chdir={tmp_path}",
        f"--output={tmp_path}/out", "--wrap", f"export {harmful}; {command}", timeout=120,
    ).strip()  # fmt: skip
    text = (tmp_path / "out").read_text()
    assert (tmp_path / "a.txt").exists(), text
    assert ((tmp_path / "a.txt").read_text().strip() == number) == (scheduler == "slurm-allocation"), text
