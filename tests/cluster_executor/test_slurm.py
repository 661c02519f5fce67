"""Runs on a real SLURM, and what may befall them: all models have the bytes of an undisturbed run without a cluster."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from ..workflow.conftest import Workplace
from .conftest import await_, begin, copy_of, end, kill, processes, trained, working
from .slurm import Slurm

pytestmark = pytest.mark.slow


@pytest.fixture
def place(on_slurm: Workplace, tmp_path: Path) -> Workplace:
    return copy_of(on_slurm, tmp_path)


def of_this_place(slurm: Slurm) -> list[str]:
    """The jobs of a workflow that have not ended."""
    return slurm.run("squeue", "--noheader", "--format=%j").split()


def test_a_run_from_nothing_gives_the_bytes_of_one_machine(longer: Workplace, slurm: Slurm, tmp_path: Path) -> None:
    place = Workplace(tmp_path / "fresh", longer.config, "slurm", slurm.env)
    outcome = place.snakemake("-j", "32")
    assert outcome.status == 0, outcome.text
    assert place.models() == longer.models()
    assert place.snakemake("-j", "32").jobs == {}


def test_a_job_without_enough_memory_is_given_more(place: Workplace, longer: Workplace) -> None:
    place.config["resources"] = {"train": {"mem_mb": 120}}
    outcome = end(begin(place, "--retries", "3"))
    assert outcome.status == 0, outcome.text
    assert "it used more memory than it had asked for" in outcome.text
    grown = re.findall(r"train: mem_mb=(\d+) was too little, its jobs ask for (\d+) from now on", outcome.text)
    assert ("120", "240") in grown
    # What one job has shown to need the next ones ask for at once.
    assert outcome.jobs["train"] <= 4 + 2 * 2
    assert trained(place) == trained(longer)


def test_a_cancelled_job_is_tried_again(place: Workplace, longer: Workplace, slurm: Slurm) -> None:
    process = begin(place)
    slurm.run("scancel", str(working(place, 1, 1).number))
    outcome = end(process)
    assert outcome.status == 0, outcome.text
    assert "it was cancelled" in outcome.text
    assert trained(place) == trained(longer)


def node_of(slurm: Slurm, number: str | None) -> str:
    return slurm.job(int(str(number)))["NodeList"]


def test_a_node_that_dies_loses_nothing(place: Workplace, longer: Workplace, slurm: Slurm) -> None:
    process = begin(place)
    node = node_of(slurm, working(place, 1, 1).number)
    slurm.kill_node(node, everything=True)
    slurm.down(node)  # what the controller finds out by itself after SlurmdTimeout
    outcome = end(process)
    slurm.start_node(node)
    slurm.wait_until_idle()
    assert outcome.status == 0, outcome.text
    assert "its node failed" in outcome.text
    assert trained(place) == trained(longer)


def test_a_node_whose_daemon_dies_loses_nothing(place: Workplace, longer: Workplace, slurm: Slurm) -> None:
    process = begin(place)
    node = node_of(slurm, working(place, 1, 1).number)
    slurm.kill_node(node)
    outcome = end(process)
    slurm.down(node)
    slurm.start_node(node)
    slurm.wait_until_idle()
    assert outcome.status == 0, outcome.text
    assert trained(place) == trained(longer)


def test_a_drained_node_ends_its_jobs(place: Workplace, longer: Workplace, slurm: Slurm) -> None:
    process = begin(place)
    node = node_of(slurm, working(place, 1, 1).number)
    slurm.drain(node)
    outcome = end(process)
    slurm.resume(node)
    assert outcome.status == 0, outcome.text
    assert outcome.jobs["train"] == 4
    assert trained(place) == trained(longer)


def test_a_preempted_job_is_tried_again(place: Workplace, longer: Workplace, slurm: Slurm) -> None:
    process = begin(place)
    node = node_of(slurm, working(place, 1, 1).number)
    slurm.run("srun", "--partition=urgent", f"--nodelist={node}", f"--cpus-per-task={slurm.cpus}", "sleep", "1")
    outcome = end(process)
    assert outcome.status == 0, outcome.text
    assert "another job took its place" in outcome.text
    assert trained(place) == trained(longer)


def test_the_controller_may_restart(place: Workplace, longer: Workplace, slurm: Slurm) -> None:
    process = begin(place)
    working(place, 0, 1)
    slurm.restart_controller()
    outcome = end(process)
    assert outcome.status == 0, outcome.text
    assert trained(place) == trained(longer)


def test_the_controller_may_die(place: Workplace, longer: Workplace, slurm: Slurm) -> None:
    """It forgets the jobs of the last seconds, for which their commands would wait for ever."""
    process = begin(place)
    working(place, 1, 1)
    slurm.kill_controller()
    time.sleep(1.0)
    slurm.start_controller()
    outcome = end(process)
    assert outcome.status == 0, outcome.text
    assert trained(place) == trained(longer)


def test_what_a_dead_machine_left_under_way_is_cancelled(place: Workplace, longer: Workplace, slurm: Slurm) -> None:
    process = begin(place)
    working(place, 0, 1)
    mark = next(name for name in of_this_place(slurm) if "ngsgd-" in name).rpartition(".")[2]
    # A job that nothing waits for any more, as after a loss of power.
    left = slurm.run(
        "sbatch", "--parsable", "--output=/dev/null", f"--job-name=train.run.9.9.{mark}", "--wrap", "sleep 600"
    ).strip()
    another = slurm.run(
        "sbatch", "--parsable", "--output=/dev/null", "--job-name=train.run.9.9.ngsgd-0", "--wrap", "sleep 600"
    ).strip()
    process.kill()
    process.communicate(timeout=60)
    outcome = end(begin(place))
    assert outcome.status == 0, outcome.text
    assert f"of a call that has died: {left}" in outcome.text
    assert slurm.job(int(left))["JobState"] == "CANCELLED"
    assert slurm.job(int(another))["JobState"] == "RUNNING"
    slurm.run("scancel", another)
    assert trained(place) == trained(longer)


def test_a_second_call_refuses_and_harms_nothing(place: Workplace, longer: Workplace) -> None:
    process = begin(place)
    working(place, 1, 1)
    second = end(begin(place))
    assert second.status == 1
    assert "results is being worked on by process" in second.last_line
    outcome = end(process)
    assert outcome.status == 0, outcome.text
    assert outcome.jobs["train"] == 4
    assert trained(place) == trained(longer)


def test_a_full_disk_is_no_end(place: Workplace, longer: Workplace) -> None:
    jobs = place.run / "jobs"
    jobs.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", jobs], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a file system that is soon full")
    try:
        process = begin(place)
        log = place.run / "logs/train/0.1.log"
        await_(lambda: log.exists() and "No space left on device" in log.read_text(), "a full disk")
        subprocess.run(["mount", "-o", "remount,size=1g", jobs], check=True)
        outcome = end(process)
        assert outcome.status == 0, outcome.text
        assert not list(jobs.glob(".*.part"))
        assert trained(place) == trained(longer)
    finally:
        subprocess.run(["umount", "--lazy", jobs], check=True)


def test_files_may_appear_late(place: Workplace, longer: Workplace, tmp_path: Path) -> None:
    """Each process sees files of others only some seconds after they have been made, as on some file systems."""
    library = tmp_path / "late.so"
    source = Path(__file__).with_name("late.c")
    if subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"]).returncode:
        pytest.skip("needs a C compiler")
    place.environment |= {"LD_PRELOAD": str(library), "LATE_BELOW": str(place.run), "LATE_SECONDS": "1"}
    time.sleep(4.0)  # the copy is to be seen: what is late here is what the run makes
    outcome = end(begin(place))
    assert outcome.status == 0, outcome.text
    assert trained(place) == trained(longer)
    assert outcome.jobs["train"] == 4, outcome.text


def lose(place: Workplace, iteration: int, job: int) -> threading.Event:
    """Kills a job each time that it is tried, until told to stop."""
    stop = threading.Event()

    def hunt() -> None:
        while not stop.wait(0.1):
            for pid in processes(place, "train", "results/run", str(iteration), str(job)):
                os.kill(pid, signal.SIGKILL)

    threading.Thread(target=hunt, daemon=True).start()
    return stop


def test_an_iteration_can_do_without_a_lost_job(place: Workplace, longer: Workplace) -> None:
    stop = lose(place, 1, 2)
    place.config["min_jobs"] = 1
    outcome = end(begin(place, "--retries", "1", target="all"))
    stop.set()
    assert outcome.status == 0, outcome.text
    ledger = (place.run / "lost.tsv").read_text().splitlines()
    assert len(ledger) == 2
    assert ledger[1].startswith("1\t2\t")
    assert (place.run / "plan.tsv").read_bytes() == (longer.run / "plan.tsv").read_bytes()
    metrics = [line.split("\t") for line in (place.run / "metrics.tsv").read_text().splitlines()]
    used = metrics[0].index("jobs_used")
    assert [row[used] for row in metrics[1:4]] == ["1", "1", "2"]  # of iterations 0 and 1 the best one is taken
    assert "job 2 lost: " in metrics[2][metrics[0].index("warning")]
    models = place.models()
    assert models["models/2.safetensors"] != longer.models()["models/2.safetensors"]
    # Again from the beginning, with all jobs well: the ledger is replayed, on a cluster or not.
    for path in [*(place.run / "models").iterdir(), *(place.run / "jobs").iterdir(), place.run / "final.safetensors"]:
        path.unlink()
    del place.config["min_jobs"]
    place.profile = []
    outcome = place.snakemake()
    assert outcome.status == 0, outcome.text
    assert outcome.jobs["train"] == 5
    del models["jobs/1.2.safetensors"]
    assert place.models() == models


def test_more_lost_jobs_than_may_be_stop_the_run_and_the_next_call_goes_on(place: Workplace, longer: Workplace) -> None:
    stops = [lose(place, 0, job) for job in (1, 2)]
    place.config["min_jobs"] = 1
    outcome = end(begin(place, "--retries", "0"))
    for stop in stops:
        stop.set()
    assert outcome.status == 1
    assert "error: iteration 0: 2 of 2 jobs are lost" in outcome.last_line
    assert not (place.run / "lost.tsv").exists()
    outcome = end(begin(place))
    assert outcome.status == 0, outcome.text
    assert trained(place) == trained(longer)


def test_an_iteration_waits_only_so_long_for_a_straggler(place: Workplace, slurm: Slurm) -> None:
    place.config |= {"min_jobs": 1, "straggler_timeout": 2.0}
    process = begin(place)
    told = working(place, 1, 1)
    kill(place, signal.SIGSTOP, "train", "results/run", "1", "1")
    outcome = end(process)
    assert outcome.status == 0, outcome.text
    assert outcome.jobs["train"] == 4
    ledger = (place.run / "lost.tsv").read_text().splitlines()
    assert len(ledger) == 2
    assert ledger[1].startswith("1\t1\t")
    assert ledger[1].endswith("the others of its iteration have waited for it long enough")
    assert slurm.job(int(str(told.number)))["JobState"] not in ("RUNNING", "PENDING")


def test_gpus_are_asked_for_where_training_is_to_use_them(place: Workplace, slurm: Slurm) -> None:
    place.config["device"] = "cuda"
    process = begin(place, "--retries", "0")
    outcome = end(process)
    assert "device: cuda: this machine has no usable GPU" in outcome.last_line  # in name only
    jobs = [slurm.job(job.id) for job in slurm.jobs() if job.name.startswith("train.run.0.")]
    assert jobs
    assert all("gpu" in job["TresPerNode"] for job in jobs[-2:])


def test_a_job_that_no_node_can_run_says_so(place: Workplace) -> None:
    place.config["resources"] = {"train": {"mem_mb": 10_000_000}}
    outcome = end(begin(place, "--retries", "0"))
    assert outcome.status == 1
    assert "Requested node configuration is not available" in outcome.text
