"""Tests of the commands sent to schedulers and of how their messages are read."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ngsgd.errors import ClusterError
from snakemake_executor_plugin_ngsgd.commands import run_scheduler_command
from snakemake_executor_plugin_ngsgd.gridengine import GridEngine
from snakemake_executor_plugin_ngsgd.requests import make_request
from snakemake_executor_plugin_ngsgd.scheduler import Resources
from snakemake_executor_plugin_ngsgd.slurm import Slurm, SlurmAllocation

from ..workflow.conftest import ROOT, SNAKEMAKE

ALL = Resources(
    threads=4, mem_mb=8001, runtime=90, gpus=2, partition="gpu", account="asr", extra="--qos=low --comment='a b'"
)


def test_slurm_command_requests_all_resources() -> None:
    command = Slurm().command("train.1", ALL, "echo $X")
    assert command[0] == "srun"
    assert command[-3:] == ["bash", "-c", "echo $X"]
    assert {
        "--job-name=train.1", "--cpus-per-task=4", "--mem=8001M", "--time=90", "--gres=gpu:2", "--partition=gpu",
        "--account=asr", "--qos=low", "--comment=a b",
    } <= set(command)  # fmt: skip
    for gres in ("gpu:a100:1", "gpu:1g.10gb:1"):
        assert f"--gres={gres}" in Slurm().command("x", Resources(gpus=2, gres=gres), "")
    minimal = " ".join(Slurm().command("x", Resources(), ""))
    assert not any(option in minimal for option in ("--mem", "--time", "--gres", "--partition", "--account"))


def test_slurm_command_requests_what_profiles_of_other_plugins_name() -> None:
    request = make_request(
        {
            "slurm_partition": "gpu", "slurm_account": "asr", "slurm_extra": "--nice=5", "gpu": 2, "gpus": 0,
            "gpu_model": "a100", "mem_mb": 4000, "mem_mb_per_cpu": 500, "cpus_per_task": 6, "constraint": "ib&ssd",
            "qos": "low", "reservation": "course", "tasks": 1, "nodes": 1, "runtime": 60, "licences": 3,
        },
        4,
        {"mem_mb"},
    )  # fmt: skip
    command = Slurm().command("train.1", request, "")
    assert {
        "--partition=gpu", "--account=asr", "--nice=5", "--gres=gpu:a100:2", "--mem-per-cpu=500M", "--cpus-per-task=6",
        "--constraint=ib&ssd", "--qos=low", "--reservation=course", "--time=60",
    } <= set(command)  # fmt: skip
    assert not any(word.startswith("--mem=") for word in command)
    step = SlurmAllocation().command("train.1", request, "")
    assert not any(word.startswith(("--constraint", "--qos", "--reservation")) for word in step)
    assert "--gres=gpu:a100:2" in step
    assert "-l mem_free=500M" in " ".join(GridEngine().command("train.1", request, ""))


@pytest.mark.parametrize(
    ("given", "defaults", "option"),
    [
        ({"mem_mb": 0}, {"mem_mb"}, None),
        ({"mem_mb": 8000}, {"mem_mb"}, "--mem=8000M"),
        ({"mem_mb": 8000, "mem_mb_per_cpu": 500}, {"mem_mb_per_cpu"}, "--mem-per-cpu=2000M"),
        ({"mem_mb": 8000, "mem_mb_per_cpu": 500}, {"mem_mb"}, "--mem-per-cpu=500M"),
        ({"mem_mb": 8000, "mem_mb_per_cpu": 500}, {"mem_mb", "mem_mb_per_cpu"}, "--mem-per-cpu=500M"),
    ],
)
def test_memory_is_requested_in_one_form(given: dict[str, int], defaults: set[str], option: str | None) -> None:
    words = [word for word in Slurm().command("x", make_request(given, 4, defaults), "") if word.startswith("--mem")]
    assert words == ([option] if option else [])


def test_more_memory_is_requested_in_the_same_form() -> None:
    assert Resources(threads=4, mem_mb_per_cpu=500).with_memory(4001).mem_mb_per_cpu == 1001
    assert Resources(threads=4, mem_mb=500).with_memory(4001).mem_mb == 4001
    assert Resources(threads=4, mem_mb=5000).with_memory(4001).mem_mb == 5000


def test_slurm_step_requests_no_allocation_options() -> None:
    command = SlurmAllocation().command("train.1", ALL, "echo")
    assert {"--exact", "--mem=8001M", "--gres=gpu:2", "--cpus-per-task=4"} <= set(command)
    assert not any(word.startswith(("--partition", "--account", "--time")) for word in command)


def test_slurm_job_is_not_a_step_of_the_job_of_snakemake() -> None:
    inner = {"SLURM_CONF": "/etc/slurm.conf", "PATH": "/bin"}
    outer = inner | {"SLURM_JOB_ID": "7", "SRUN_DEBUG": "3", "SLURM_MEM_PER_CPU": "9", "SBATCH_QOS": "low"}
    asked = {"SLURM_ACCOUNT": "asr", "SLURM_CLUSTERS": "a,b"}
    assert Slurm().environment(outer | asked) == inner | asked | {"SLURM_QOS": "low", "SBATCH_QOS": "low"}
    assert SlurmAllocation().environment(outer | asked) == inner | {"SLURM_JOB_ID": "7", "SBATCH_QOS": "low"}


def test_grid_engine_command_requests_all_resources() -> None:
    site = GridEngine(memory="h_vmem", gpu="gpus", parallel_environment="omp")
    command = site.command("train.1", ALL, "echo $X")
    assert command[0] == "qrsh"
    assert command[-3:] == ["bash", "-c", "echo $X"]
    text = " ".join(command)
    for option in ("-N train.1", "-pe omp 4", "-l h_vmem=2001M", "-l h_rt=5400", "-l gpus=2", "-q gpu", "-P asr"):
        assert option in text
    assert "--comment=a b" in command
    assert "-pe" not in site.command("x", Resources(threads=1), "")


@pytest.mark.parametrize("profile", ["slurm", "sge"])
def test_profile_works_from_the_project_root(profile: str, tmp_path: Path) -> None:
    command = [SNAKEMAKE, "--profile", profile, "-j", "32", "--directory", tmp_path, "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("output", "reason", "exhausted"),
    [
        ("slurmstepd-n1: error: StepId=5.0 exceeded memory limit (2 > 1), being killed", "more memory", "memory"),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=5.0.", "more memory", "memory"),
        ("srun: error: n1: task 0: Out Of Memory", "more memory", "memory"),
        (
            "slurmstepd: error: *** STEP 6.0 ON n1 CANCELLED AT 2026-11-23T16:04:40 DUE TO TIME LIMIT ***",
            "time",
            "time",
        ),
        ("slurmstepd: error: *** STEP 6.0 ON n1 CANCELLED AT 2026 DUE TO PREEMPTION ***", "took its place", None),
        ("srun: error: Node failure on node4", "node failed", None),
        ("slurmstepd: error: *** STEP 8.0 ON n1 CANCELLED AT 2026-11-23T16:04:40 ***", "cancelled", None),
        ("srun: error: n1: task 0: Exited with\nexit code 1", "srun: error: n1: task 0: Exited with exit code 1", None),
        ("", "it failed", None),
    ],
)
def test_reason_of_a_failure_on_slurm(output: str, reason: str, exhausted: str | None) -> None:
    failure = Slurm().outcome(output, 5.0, Resources())
    assert reason in failure.reason
    assert failure.exhausted == exhausted


@pytest.mark.parametrize(
    ("output", "seconds", "reason", "exhausted"),
    [
        ("MemoryError", 5.0, "more memory", "memory"),
        ("", 60.4, "limit of time", "time"),
        ("", 30.0, "cancelled, or killed", None),
        ("error: commlib error: got read error", 30.0, "commlib error", None),
    ],
)
def test_reason_of_a_failure_on_grid_engine(output: str, seconds: float, reason: str, exhausted: str | None) -> None:
    failure = GridEngine().outcome(output, seconds, Resources(runtime=1))
    assert reason in failure.reason
    assert failure.exhausted == exhausted


@pytest.mark.parametrize(
    ("script", "message"), [("exit 3", "exit status 3"), ("echo no >&2; exit 1", "exit status 1: no")]
)
def test_failed_command_is_reported_with_its_status(script: str, message: str) -> None:
    with pytest.raises(ClusterError, match=f"{message}$"):
        run_scheduler_command(["sh", "-c", script])
