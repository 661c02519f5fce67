"""Requests on a real SLURM: what a job gets of a profile."""

from __future__ import annotations

import json
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
    if "gpu" in resources or "slurm_extra" in resources:
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
