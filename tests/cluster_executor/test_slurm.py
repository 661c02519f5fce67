"""Disturbed runs on a real SLURM: all models have the bytes of an undisturbed run without a cluster."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from ..workflow.conftest import SNAKEMAKE, Workplace
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
from .slurm import Slurm

pytestmark = pytest.mark.slow


@pytest.fixture
def place(slurm_run: Workplace, tmp_path: Path) -> Workplace:
    return copy_run(slurm_run, tmp_path)


def active_job_names(slurm: Slurm) -> list[str]:
    """Returns the names of all jobs that have not ended."""
    return slurm.run("squeue", "--noheader", "--format=%j").split()


def test_whole_run_has_the_models_of_a_run_without_a_cluster(
    reference: Workplace, slurm: Slurm, tmp_path: Path
) -> None:
    place = Workplace(tmp_path / "fresh", reference.config, "slurm", slurm.env)
    outcome = place.snakemake("-j", "32")
    assert outcome.status == 0, outcome.text
    assert place.models() == reference.models()
    assert place.snakemake("-j", "32").jobs == {}


def test_job_without_enough_memory_is_retried_with_more(place: Workplace, reference: Workplace) -> None:
    place.config["resources"] = {"train": {"mem_mb": 120}}
    outcome = wait_for_end(start_snakemake(place, "--retries", "3"))
    assert outcome.status == 0, outcome.text
    assert "it used more memory than it had asked for" in outcome.text
    increases = re.findall(r"train: mem_mb=(\d+) was too little, its jobs ask for (\d+) from now on", outcome.text)
    assert ("120", "240") in increases
    # Later jobs request at once as much as an earlier one turned out to need.
    assert outcome.jobs["train"] <= 4 + 2 * 2
    assert model_hashes(place) == model_hashes(reference)


def test_cancelled_job_is_retried(place: Workplace, reference: Workplace, slurm: Slurm) -> None:
    process = start_snakemake(place)
    slurm.run("scancel", str(wait_until_running(place, 1, 1).number))
    outcome = wait_for_end(process)
    assert outcome.status == 0, outcome.text
    assert "it was cancelled" in outcome.text
    assert model_hashes(place) == model_hashes(reference)


def node_of(slurm: Slurm, number: str | None) -> str:
    return slurm.job(int(str(number)))["NodeList"]


def test_run_survives_the_failure_of_a_node(place: Workplace, reference: Workplace, slurm: Slurm) -> None:
    process = start_snakemake(place)
    node = node_of(slurm, wait_until_running(place, 1, 1).number)
    slurm.kill_node(node, everything=True)
    slurm.down(node)  # the controller notices it by itself after SlurmdTimeout
    outcome = wait_for_end(process)
    slurm.start_node(node)
    slurm.wait_until_idle()
    assert outcome.status == 0, outcome.text
    assert "its node failed" in outcome.text
    assert model_hashes(place) == model_hashes(reference)


def test_run_survives_the_death_of_a_node_daemon(place: Workplace, reference: Workplace, slurm: Slurm) -> None:
    process = start_snakemake(place)
    node = node_of(slurm, wait_until_running(place, 1, 1).number)
    slurm.kill_node(node)
    outcome = wait_for_end(process)
    slurm.down(node)
    slurm.start_node(node)
    slurm.wait_until_idle()
    assert outcome.status == 0, outcome.text
    assert model_hashes(place) == model_hashes(reference)


def test_jobs_on_a_drained_node_finish(place: Workplace, reference: Workplace, slurm: Slurm) -> None:
    process = start_snakemake(place)
    node = node_of(slurm, wait_until_running(place, 1, 1).number)
    slurm.drain(node)
    outcome = wait_for_end(process)
    slurm.resume(node)
    assert outcome.status == 0, outcome.text
    assert outcome.jobs["train"] == 4
    assert model_hashes(place) == model_hashes(reference)


def test_preempted_job_is_retried(place: Workplace, reference: Workplace, slurm: Slurm) -> None:
    process = start_snakemake(place)
    node = node_of(slurm, wait_until_running(place, 1, 1).number)
    slurm.run("srun", "--partition=urgent", f"--nodelist={node}", f"--cpus-per-task={slurm.cpus}", "sleep", "1")
    outcome = wait_for_end(process)
    assert outcome.status == 0, outcome.text
    assert "another job took its place" in outcome.text
    assert model_hashes(place) == model_hashes(reference)


def test_run_survives_a_restart_of_the_controller(place: Workplace, reference: Workplace, slurm: Slurm) -> None:
    process = start_snakemake(place)
    wait_until_running(place, 0, 1)
    slurm.restart_controller()
    outcome = wait_for_end(process)
    assert outcome.status == 0, outcome.text
    assert model_hashes(place) == model_hashes(reference)


def test_run_survives_the_death_of_the_controller(place: Workplace, reference: Workplace, slurm: Slurm) -> None:
    """The controller forgets the jobs of the last seconds, and their commands would wait for them for ever."""
    process = start_snakemake(place)
    wait_until_running(place, 1, 1)
    slurm.kill_controller()
    time.sleep(1.0)
    slurm.start_controller()
    outcome = wait_for_end(process)
    assert outcome.status == 0, outcome.text
    assert model_hashes(place) == model_hashes(reference)


def test_jobs_of_a_dead_call_are_cancelled(place: Workplace, reference: Workplace, slurm: Slurm) -> None:
    process = start_snakemake(place)
    wait_until_running(place, 0, 1)
    mark = next(name for name in active_job_names(slurm) if "ngsgd-" in name).rpartition(".")[2]
    # This job has no waiting command any more, as after a power failure.
    orphan = slurm.run(
        "sbatch", "--parsable", "--output=/dev/null", f"--job-name=train.run.9.9.{mark}", "--wrap", "sleep 600"
    ).strip()
    other = slurm.run(
        "sbatch", "--parsable", "--output=/dev/null", "--job-name=train.run.9.9.ngsgd-0", "--wrap", "sleep 600"
    ).strip()
    process.kill()
    process.communicate(timeout=60)
    outcome = wait_for_end(start_snakemake(place))
    assert outcome.status == 0, outcome.text
    assert f"of a call that has died: {orphan}" in outcome.text
    assert slurm.job(int(orphan))["JobState"] == "CANCELLED"
    assert slurm.job(int(other))["JobState"] == "RUNNING"
    slurm.run("scancel", other)
    assert model_hashes(place) == model_hashes(reference)


def test_second_call_is_refused_and_the_first_goes_on(place: Workplace, reference: Workplace) -> None:
    process = start_snakemake(place)
    wait_until_running(place, 1, 1)
    second = wait_for_end(start_snakemake(place))
    assert second.status == 1
    assert "results is being worked on by process" in second.last_line
    outcome = wait_for_end(process)
    assert outcome.status == 0, outcome.text
    assert outcome.jobs["train"] == 4
    assert model_hashes(place) == model_hashes(reference)


def test_run_goes_on_after_a_full_disk(place: Workplace, reference: Workplace) -> None:
    jobs = place.run / "jobs"
    jobs.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", jobs], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        process = start_snakemake(place)
        log = place.run / "logs/train/0.1.log"
        wait_until(lambda: log.exists() and "No space left on device" in log.read_text(), "a full disk")
        subprocess.run(["mount", "-o", "remount,size=1g", jobs], check=True)
        outcome = wait_for_end(process)
        assert outcome.status == 0, outcome.text
        assert not list(jobs.glob(".*.part"))
        assert model_hashes(place) == model_hashes(reference)
    finally:
        subprocess.run(["umount", "--lazy", jobs], check=True)


def test_run_tolerates_files_that_appear_late(place: Workplace, reference: Workplace, tmp_path: Path) -> None:
    """Each process sees files of others only some seconds after their creation, as on some shared file systems."""
    library = tmp_path / "late.so"
    source = Path(__file__).with_name("late.c")
    if subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"]).returncode:
        pytest.skip("needs a C compiler")
    place.environment |= {"LD_PRELOAD": str(library), "LATE_BELOW": str(place.run), "LATE_SECONDS": "1"}
    time.sleep(4.0)  # the copied files are visible by then; only files of the run appear late
    outcome = wait_for_end(start_snakemake(place))
    assert outcome.status == 0, outcome.text
    assert model_hashes(place) == model_hashes(reference)
    assert outcome.jobs["train"] == 4, outcome.text


def keep_killing(place: Workplace, iteration: int, job: int) -> threading.Event:
    """Kills every attempt of a job until the returned event is set."""
    stop = threading.Event()

    def kill_attempts() -> None:
        while not stop.wait(0.1):
            for pid in processes(place, "train", str(iteration), str(job)):
                os.kill(pid, signal.SIGKILL)

    threading.Thread(target=kill_attempts, daemon=True).start()
    return stop


def test_iteration_goes_on_without_a_lost_job(place: Workplace, reference: Workplace) -> None:
    stop = keep_killing(place, 1, 2)
    place.config["min_jobs"] = 1
    outcome = wait_for_end(start_snakemake(place, "--retries", "1", target="all"))
    stop.set()
    assert outcome.status == 0, outcome.text
    ledger = (place.run / "lost.tsv").read_text().splitlines()
    assert len(ledger) == 2
    assert ledger[1].startswith("1\t2\t")
    assert (place.run / "plan.tsv").read_bytes() == (reference.run / "plan.tsv").read_bytes()
    metrics = [line.split("\t") for line in (place.run / "metrics.tsv").read_text().splitlines()]
    used = metrics[0].index("jobs_used")
    assert [row[used] for row in metrics[1:4]] == ["1", "1", "2"]  # iterations 0 and 1 take the best job
    assert "job 2 lost: " in metrics[2][metrics[0].index("warning")]
    models = place.models()
    assert models["models/2.safetensors"] != reference.models()["models/2.safetensors"]
    # A rerun from the beginning without failures repeats the losses of the ledger, on a cluster or not.
    for path in [*(place.run / "models").iterdir(), *(place.run / "jobs").iterdir(), place.run / "final.safetensors"]:
        path.unlink()
    del place.config["min_jobs"]
    place.profile = []
    outcome = place.snakemake()
    assert outcome.status == 0, outcome.text
    assert outcome.jobs["train"] == 5
    del models["jobs/1.2.safetensors"]
    assert place.models() == models


def test_too_many_lost_jobs_stop_the_run_and_the_next_call_resumes_it(place: Workplace, reference: Workplace) -> None:
    stops = [keep_killing(place, 0, job) for job in (1, 2)]
    place.config["min_jobs"] = 1
    outcome = wait_for_end(start_snakemake(place, "--retries", "0"))
    for stop in stops:
        stop.set()
    assert outcome.status == 1
    assert "error: iteration 0: 2 of 2 jobs are lost" in outcome.last_line
    assert not (place.run / "lost.tsv").exists()
    outcome = wait_for_end(start_snakemake(place))
    assert outcome.status == 0, outcome.text
    assert model_hashes(place) == model_hashes(reference)


def test_straggler_is_given_up_after_its_timeout(place: Workplace, slurm: Slurm) -> None:
    place.config |= {"min_jobs": 1, "straggler_timeout": 2.0}
    process = start_snakemake(place)
    progress = wait_until_running(place, 1, 1)
    kill(place, signal.SIGSTOP, "train", "1", "1")
    outcome = wait_for_end(process)
    assert outcome.status == 0, outcome.text
    assert outcome.jobs["train"] == 4
    ledger = (place.run / "lost.tsv").read_text().splitlines()
    assert len(ledger) == 2
    assert ledger[1].startswith("1\t1\t")
    assert ledger[1].endswith("the others of its iteration have waited for it long enough")
    assert slurm.job(int(str(progress.number)))["JobState"] not in ("RUNNING", "PENDING")


def test_training_on_cuda_requests_gpus(place: Workplace, slurm: Slurm) -> None:
    place.config["device"] = "cuda"
    process = start_snakemake(place, "--retries", "0")
    outcome = wait_for_end(process)
    assert "device: cuda: this machine has no usable GPU" in outcome.last_line  # the GPUs are simulated
    jobs = [slurm.job(job.id) for job in slurm.jobs() if job.name.startswith("train.run.0.")]
    assert jobs
    assert all("gpu" in job["TresPerNode"] for job in jobs[-2:])


def test_request_that_no_node_can_satisfy_is_reported(place: Workplace) -> None:
    place.config["resources"] = {"train": {"mem_mb": 10_000_000}}
    outcome = wait_for_end(start_snakemake(place, "--retries", "0"))
    assert outcome.status == 1
    assert "Requested node configuration is not available" in outcome.text


FAULTY_POLICY = """
from snakemake_executor_plugin_ngsgd import set_job_policy


class Faulty:
    def is_straggler(self, job):
        raise OSError("no such plan")

    def on_failure(self, job, reason, attempts_left):
        return False


set_job_policy(workflow, Faulty())


rule a:
    output:
        "a.txt",
    shell:
        "sleep 2; touch {output}"
"""


def test_error_of_the_policy_stops_nothing(slurm: Slurm, tmp_path: Path) -> None:
    """It would end the thread that waits for the jobs, and the call would wait for ever."""
    (tmp_path / "Snakefile").write_text(FAULTY_POLICY)
    done = subprocess.run(
        [SNAKEMAKE, "--executor", "ngsgd", "-j", "1", "--latency-wait", "10"],
        cwd=tmp_path,
        env=slurm.env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "no such plan" in done.stderr
