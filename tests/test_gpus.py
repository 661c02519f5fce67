"""Tests of distributing GPUs to jobs. `claim_gpu` needs only the names of GPUs, so no GPU is needed here."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ngsgd.gpus import claim_gpu

PROGRAM = """
import os, sys
from ngsgd.gpus import claim_gpu
claim_gpu(sys.argv[1])
print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
sys.stdin.read()
"""


def job(folder: Path, **environment: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "CUDA"))}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=inherited | environment,
    )


def claimed_gpu(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_no_two_jobs_share_a_gpu(tmp_path: Path) -> None:
    jobs = [job(tmp_path, CUDA_VISIBLE_DEVICES="0,GPU-77") for _ in range(2)]
    assert sorted(map(claimed_gpu, jobs)) == ["0", "GPU-77"]
    waiting = job(tmp_path, CUDA_VISIBLE_DEVICES="0,GPU-77")
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(timeout=1.5)
    jobs[0].kill()  # the claim ends with the process, however it ends
    jobs[0].wait()
    assert claimed_gpu(waiting) in ("0", "GPU-77")
    for process in (jobs[1], waiting):
        process.communicate("")


def test_each_slurm_step_may_have_a_gpu_0(tmp_path: Path) -> None:
    jobs = [
        job(tmp_path, CUDA_VISIBLE_DEVICES="0", SLURM_JOB_ID=number, SLURM_STEP_ID=step)
        for number, step in (("7", "0"), ("7", "1"), ("8", "0"))
    ]
    assert [claimed_gpu(process) for process in jobs] == ["0", "0", "0"]
    for process in jobs:
        process.communicate("")


def test_jobs_in_one_slurm_step_share_no_gpu(tmp_path: Path) -> None:
    jobs = [job(tmp_path, CUDA_VISIBLE_DEVICES="0,1", SLURM_JOB_ID="7", SLURM_JOB_GPUS="2,5") for _ in range(2)]
    assert sorted(map(claimed_gpu, jobs)) == ["0", "1"]
    for process in jobs:
        process.communicate("")


def test_locks_do_not_depend_on_the_temporary_folder_of_a_job() -> None:
    assert inspect.signature(claim_gpu).parameters["folder"].default == "/tmp"


def test_no_gpu_is_claimed_if_there_is_none(tmp_path: Path) -> None:
    process = job(tmp_path, CUDA_VISIBLE_DEVICES="")
    assert claimed_gpu(process) == ""
    process.communicate("")
    assert list(tmp_path.iterdir()) == []
