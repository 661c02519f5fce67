"""Tests of running again after a forced iteration, a deleted file, a changed setting, or the death of Snakemake."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest

from .conftest import Workplace

DERIVED = {"metrics": 1, "convergence": 1, "all": 1}  # rules that only read reports; they are cheap and make no model


def running_jobs(folder: Path) -> list[int]:
    """Returns the ids of the processes of ngsgd or Snakemake that work in a folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and int(process.name) != os.getpid():
            try:
                if (process / "cwd").resolve() == folder.resolve() and b"ngsgd" in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
            except OSError:
                continue
    return found


def assert_no_job_goes_on(folder: Path) -> None:
    """Checks that all jobs end within 15 s after the scheduler, and make no file from 0.5 s on."""

    def results() -> set[Path]:
        return {path for path in (folder / "results").rglob("*.*") if path.suffix not in (".log", ".part")}

    time.sleep(0.5)
    before = results()
    deadline = time.monotonic() + 15.0
    while running_jobs(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert running_jobs(folder) == []
    assert results() == before


def test_finished_run_has_nothing_to_do(finished: Workplace) -> None:
    outcome = finished.snakemake()
    assert (outcome.status, outcome.jobs) == (0, {})
    assert "Nothing to be done" in outcome.text


@pytest.mark.parametrize(
    "arguments",
    [
        ["--workflow-profile", "slurm", "-j", "4"],
        ["--workflow-profile", "sge", "-j", "4"],
        ["--workflow-profile", "none", "--cores", "2"],
        ["--workflow-profile", "none", "--profile", "none", "--cores", "2", "--rerun-incomplete"],
        ["--rerun-triggers", "code", "input", "mtime", "params", "software-env"],
        ["--rerun-triggers", "code"],
        ["--rerun-incomplete"],
        ["--scheduler", "ilp"],
        ["--latency-wait", "0"],
    ],
    ids=" ".join,
)
def test_no_option_makes_a_finished_run_again(finished: Workplace, arguments: list[str]) -> None:
    """Also if Snakemake was killed before and left its lock and a mark of an incomplete file, or scripts are newer."""
    model = "results/run/models/3.safetensors"
    (finished.folder / ".snakemake/locks/0.output.lock").write_text(f"{model}\n")
    (finished.folder / ".snakemake/incomplete" / urlsafe_b64encode(model.encode()).decode()).write_text("{}")
    for path in (finished.folder / "results").rglob("*"):
        os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**18))  # older than the scripts
    outcome = finished.snakemake(*arguments)
    assert (outcome.status, outcome.jobs) == (0, {}), outcome.text


def test_call_without_the_default_profile_continues_after_a_kill(finished: Workplace, undisturbed: Workplace) -> None:
    model = "results/run/models/3.safetensors"
    (finished.folder / ".snakemake/locks/0.output.lock").write_text(f"{model}\n")
    (finished.folder / ".snakemake/incomplete" / urlsafe_b64encode(model.encode()).decode()).write_text("{}")
    (finished.folder / model).unlink()
    outcome = finished.snakemake("--workflow-profile", "none", "--cores", "2")
    assert outcome.status == 0, outcome.text
    assert outcome.jobs == {"average": 1} | DERIVED
    assert finished.models() == undisturbed.models()


def test_forced_iteration_alone_is_repeated_with_the_same_models(finished: Workplace, undisturbed: Workplace) -> None:
    jobs = [f"results/run/jobs/3.{n}.safetensors" for n in (1, 2)]
    old = (finished.folder / jobs[0]).stat().st_mtime_ns
    outcome = finished.snakemake("--forcerun", *jobs)
    assert outcome.status == 0, outcome.text
    assert outcome.jobs == {"train": 2}
    assert (finished.folder / jobs[0]).stat().st_mtime_ns != old
    assert finished.models() == undisturbed.models()
    assert finished.snakemake().jobs == {}
    outcome = finished.snakemake("--force", "results/run/models/4.safetensors")
    assert outcome.jobs == {"average": 1}
    # If two links of the chain are forced, both are made.
    outcome = finished.snakemake("--forcerun", "results/run/jobs/1.1.safetensors", "results/run/models/5.safetensors")
    assert outcome.jobs == {"train": 1, "average": 1} | DERIVED
    assert finished.models() == undisturbed.models()


@pytest.mark.slow
def test_forced_rule_repeats_all_iterations(finished: Workplace, undisturbed: Workplace) -> None:
    outcome = finished.snakemake("--forcerun", "train")
    assert (outcome.jobs["train"], outcome.jobs["average"]) == (12, 6)
    assert finished.models() == undisturbed.models()


@pytest.mark.parametrize(
    ("deleted", "jobs"),
    [
        (["models/3"], {"average": 1} | DERIVED),
        (["models/0"], {"initial_model": 1, "all": 1}),
        (["models/3", "jobs/2.1", "jobs/2.2"], {"train": 2, "average": 1} | DERIVED),
        (["final"], {"combine": 1, "evaluate": 1, "all": 1}),
        (["jobs/2.1"], {}),  # no missing file needs it
        (
            ["models/2", "models/3", "jobs/2.2", "final"],
            {"train": 1, "average": 2, "combine": 1, "evaluate": 1} | DERIVED,
        ),
    ],
)  # fmt: skip
def test_deleted_models_are_made_again_identically(
    finished: Workplace, undisturbed: Workplace, deleted: list[str], jobs: dict[str, int]
) -> None:
    for name in deleted:
        (finished.run / f"{name}.safetensors").unlink()
    outcome = finished.snakemake()
    assert outcome.status == 0, outcome.text
    assert outcome.jobs == jobs
    expected = undisturbed.models()
    if not jobs:
        del expected["jobs/2.1.safetensors"]
    assert finished.models() == expected
    assert finished.snakemake().jobs == {}


def test_deleted_examples_are_made_again_for_jobs_that_need_them(finished: Workplace, undisturbed: Workplace) -> None:
    for archive in (finished.folder / "results/egs").glob("*/archives/*"):
        archive.unlink()
    assert finished.snakemake().jobs == {}
    (finished.run / "jobs/3.2.safetensors").unlink()
    (finished.run / "models/4.safetensors").unlink()
    outcome = finished.snakemake()
    assert outcome.jobs == {"distribute": 2, "shuffle": 1, "train": 1, "average": 1} | DERIVED
    assert finished.models() == undisturbed.models()


def test_deleted_plan_is_made_again_without_training(finished: Workplace, undisturbed: Workplace) -> None:
    (finished.run / "plan.tsv").unlink()
    outcome = finished.snakemake()
    assert outcome.status == 0, outcome.text
    assert outcome.jobs == {"plan": 1} | DERIVED
    assert finished.models() == undisturbed.models()


def test_changed_setting_trains_again_and_the_old_one_restores_its_models(
    finished: Workplace, undisturbed: Workplace
) -> None:
    finished.config["initial_effective_lrate"] = 0.01
    outcome = finished.snakemake()
    assert outcome.status == 0, outcome.text
    assert (outcome.jobs["train"], outcome.jobs["average"], outcome.jobs["diagnose"]) == (12, 6, 7)
    changed = finished.models()
    assert set(changed) == set(undisturbed.models())
    assert all(
        changed[name] != digest for name, digest in undisturbed.models().items() if name != "models/0.safetensors"
    )
    finished.config["initial_effective_lrate"] = undisturbed.config.get("initial_effective_lrate", 0.02)
    outcome = finished.snakemake()
    assert "train" not in outcome.jobs
    assert finished.models() == undisturbed.models()


@pytest.mark.parametrize("moment", ["superseded", "plan.tsv"])
def test_interrupted_and_reverted_change_keeps_the_models(
    finished: Workplace, undisturbed: Workplace, moment: str
) -> None:
    """The old recipe's files are restored however far the new one had got; Snakemake has no record of the change."""
    finished.config["alpha"] = 2.0  # does not change the plan
    process = finished.start()
    (finished.run / "plan.tsv").unlink()
    deadline = time.monotonic() + 60
    while not (finished.run / moment).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    time.sleep(0.5)
    finished.config["alpha"] = 4.0
    outcome = finished.snakemake()
    assert outcome.status == 0, outcome.text
    assert "train" not in outcome.jobs
    assert finished.models() == undisturbed.models()


def test_change_is_noticed_without_records_of_snakemake(finished: Workplace) -> None:
    shutil.rmtree(finished.folder / ".snakemake")
    assert finished.snakemake("--dry-run").jobs == {}
    finished.config["alpha"] = 2.0
    assert finished.snakemake("--dry-run").jobs["activate_recipe"] == 1


def test_deleted_settings_and_data_are_made_again(finished: Workplace, undisturbed: Workplace) -> None:
    (finished.run / "settings.json").unlink()
    (finished.run / "models/3.safetensors").unlink()
    outcome = finished.snakemake()
    assert outcome.status == 0, outcome.text
    assert outcome.jobs == {"plan": 1, "average": 1} | DERIVED
    shutil.rmtree(finished.folder / "results/data")
    assert finished.snakemake().jobs == {}
    (finished.run / "final.safetensors").unlink()
    outcome = finished.snakemake()
    assert outcome.status == 0, outcome.text
    assert "train" not in outcome.jobs
    assert finished.models() == undisturbed.models()


def test_forced_evaluation_trains_nothing(finished: Workplace) -> None:
    (finished.run / "models/3.safetensors").unlink()
    finished.snakemake()
    assert finished.snakemake("--dry-run", "--forcerun", "evaluate").jobs == {"evaluate": 1, "all": 1}


def test_changed_data_trains_again(
    finished: Workplace, few_digits: Path, undisturbed: Workplace, tmp_path: Path
) -> None:
    finished.config["num_test_utterances"] = 40
    outcome = finished.snakemake("--dry-run")
    assert outcome.jobs["assemble"] == outcome.jobs["activate_recipe"] == 1


def test_changed_scoring_setting_does_not_train_again(finished: Workplace, undisturbed: Workplace) -> None:
    finished.config["num_valid_frames"] = 300
    outcome = finished.snakemake()
    assert outcome.status == 0, outcome.text
    assert (
        outcome.jobs
        == {"activate_recipe": 1, "plan": 1, "sample": 1, "diagnose": 7, "combine": 1, "evaluate": 1} | DERIVED
    )
    final = {"final.safetensors"}
    changed, original = finished.models(), undisturbed.models()
    assert {n: h for n, h in changed.items() if n not in final} == {n: h for n, h in original.items() if n not in final}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_killed_run_resumes_and_makes_the_same_models(empty: Workplace, undisturbed: Workplace, seed: int) -> None:
    """Snakemake is killed three times with SIGKILL; each next call resumes the run."""
    rng = random.Random(seed)
    for _ in range(3):
        process = empty.start()
        time.sleep(rng.uniform(4.0, 9.0))
        process.kill()
        process.wait()
        assert_no_job_goes_on(empty.folder)
    outcome = empty.snakemake()
    assert outcome.status == 0, outcome.text
    assert empty.models() == undisturbed.models()
    assert not list(empty.folder.rglob("*.part"))
    assert empty.snakemake().jobs == {}


def test_second_snakemake_is_refused_and_names_the_first(finished: Workplace, undisturbed: Workplace) -> None:
    for x in range(1, 7):
        (finished.run / f"models/{x}.safetensors").unlink()
        for n in (1, 2):
            (finished.run / f"jobs/{x - 1}.{n}.safetensors").unlink()
    first = finished.start()
    lock = finished.folder / "results" / ".lock"
    deadline = time.monotonic() + 60
    while not (lock.exists() and str(first.pid) in lock.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = finished.snakemake()
    assert second.status != 0
    assert second.last_line.startswith("error: results is being worked on by process")
    assert str(first.pid) in second.last_line
    assert first.wait(timeout=120) == 0
    assert finished.models() == undisturbed.models()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_terminated_snakemake_leaves_no_job_behind(empty: Workplace, number: signal.Signals) -> None:
    process = empty.start()
    deadline = time.monotonic() + 60
    while not list(empty.run.glob("recipe/*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # Snakemake now makes its plan again and holds a lock on which its own handler of SIGTERM would wait.
    for _ in range(50 if number == signal.SIGTERM else 1):
        process.send_signal(number)
        time.sleep(0.01)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert_no_job_goes_on(empty.folder)


def test_job_ends_with_its_scheduler(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, time\n"
        "from ngsgd.locks import announce_snakemake_process\n"
        "announce_snakemake_process()\n"
        "job = 'import time; from ngsgd.locks import exit_with_snakemake_process; exit_with_snakemake_process(); '\n"
        "job += 'print(1, flush=True); time.sleep(60)'\n"
        "subprocess.run(['sh', '-c', f'{sys.executable} -c \"{job}\"; true'])\n"
    )
    path = tmp_path / "scheduler.py"
    path.write_text(program)
    scheduler = subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, text=True)
    assert scheduler.stdout is not None
    assert scheduler.stdout.readline() == "1\n"
    scheduler.kill()
    # The pipe closes when both the job and its shell have ended.
    started = time.monotonic()
    assert scheduler.stdout.read() == ""
    assert time.monotonic() - started < 5.0


@pytest.mark.slow
def test_momentum_is_kept_with_its_models(empty: Workplace) -> None:
    empty.config |= {"outer_momentum": 0.5, "outer_lrate": 0.7, "outer_nesterov": True, "pnorm_input_dim": 300}
    assert empty.snakemake("results/run/final.safetensors").status == 0
    models, momenta = empty.models(), empty.run / "momenta"
    last = max(int(path.stem) for path in momenta.iterdir())
    before = {path.name: path.read_bytes() for path in momenta.iterdir()}
    # A model is made again with the momentum of the model before, which is kept.
    for x in (last - 1, last):
        (empty.run / f"models/{x}.safetensors").unlink()
        (momenta / f"{x}.safetensors").unlink()
    (empty.run / "final.safetensors").unlink()
    assert empty.snakemake("results/run/final.safetensors").status == 0
    assert empty.models() == models
    assert {path.name: path.read_bytes() for path in momenta.iterdir()} == before
    # A missing momentum is an error.
    (momenta / f"{last - 1}.safetensors").unlink()
    for name in (f"models/{last}.safetensors", "final.safetensors"):
        (empty.run / name).unlink()
    outcome = empty.snakemake("results/run/final.safetensors")
    assert outcome.status == 1
    assert outcome.last_line.startswith(f"error: results/run/momenta/{last - 1}.safetensors: the momentum of")


def test_metrics_are_made_again_if_the_settings_file_is_missing(finished: Workplace) -> None:
    table = (finished.run / "metrics.tsv").read_bytes()
    (finished.run / "metrics.tsv").unlink()
    (finished.run / "settings.json").unlink()
    outcome = finished.snakemake("results/run/metrics.tsv")
    assert outcome.status == 0, outcome.text
    assert outcome.jobs["metrics"] == 1
    assert not outcome.jobs.keys() & {"train", "average", "diagnose"}
    assert (finished.run / "metrics.tsv").read_bytes() == table
