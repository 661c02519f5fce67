"""Tests of features for long runs: pruned models, extra epochs, initial models of other runs, and lost jobs."""

from __future__ import annotations

import json
import os
import signal
import threading

import numpy as np
import pytest

from ngsgd import load_model

from .conftest import Workplace
from .test_rerun import DERIVED, running_jobs


def models(place: Workplace) -> list[int]:
    return sorted(int(path.stem) for path in (place.run / "models").glob("[0-9]*.safetensors"))


@pytest.mark.slow
def test_models_and_examples_are_removed_during_a_run(empty: Workplace, undisturbed: Workplace) -> None:
    empty.config |= {"keep_last_models": 1, "keep_every_model": 4, "max_models_combine": 1, "keep_examples": False}
    outcome = empty.snakemake()
    assert outcome.status == 0, outcome.text
    assert models(empty) == [0, 4, 6]
    assert not list(empty.run.glob("jobs/*"))
    assert not list((empty.folder / "results/egs").glob("*/archives"))
    expected = undisturbed.models()
    assert {name: expected[name] for name in empty.models() if name != "final.safetensors"} == {
        f"models/{x}.safetensors": expected[f"models/{x}.safetensors"] for x in (0, 4, 6)
    }
    assert empty.snakemake().jobs == {}
    # A needed model is made again from the nearest earlier model that was kept.
    (empty.run / "models/6.safetensors").unlink()
    assert empty.snakemake().jobs == {}
    outcome = empty.snakemake("results/run/models/6.safetensors")
    assert outcome.status == 0, outcome.text
    assert (outcome.jobs["train"], outcome.jobs["average"]) == (4, 2)
    assert models(empty) == [0, 4, 6]
    assert empty.models()["models/6.safetensors"] == expected["models/6.safetensors"]
    assert empty.snakemake().jobs == {}
    # Keeping more models from now on restores none.
    empty.config |= {"keep_last_models": None, "keep_every_model": None}
    assert empty.snakemake().jobs == {}


def test_extra_epochs_extend_a_finished_run(finished: Workplace, undisturbed: Workplace) -> None:
    before = undisturbed.models()
    times = {path: path.stat().st_mtime_ns for path in (finished.run / "models").iterdir()}
    finished.config["extra_epochs"] = 0.34
    outcome = finished.snakemake()
    assert outcome.status == 0, outcome.text
    assert (outcome.jobs["train"], outcome.jobs["average"], outcome.jobs["diagnose"]) == (4, 2, 2)
    assert models(finished) == list(range(9))
    assert {path: path.stat().st_mtime_ns for path in times} == times
    after = finished.models()
    assert {name: after[name] for name in before if name != "final.safetensors"} == {
        name: digest for name, digest in before.items() if name != "final.safetensors"
    }
    assert after["final.safetensors"] != before["final.safetensors"]
    assert len((finished.run / "metrics.tsv").read_text().splitlines()) == 1 + 9
    assert finished.snakemake().jobs == {}
    del finished.config["extra_epochs"]
    outcome = finished.snakemake()
    assert outcome.status == 0, outcome.text
    assert "train" not in outcome.jobs
    assert finished.models()["final.safetensors"] == before["final.safetensors"]


def test_run_starts_from_the_model_of_another_run(finished: Workplace) -> None:
    settings = {"initial_model": "results/run/final.safetensors", "num_epochs": 0.34, "seed": 1}
    finished.config["runs"] = {"next": settings, "run": {}}
    outcome = finished.snakemake()
    assert outcome.status == 0, outcome.text
    assert outcome.jobs["train"] == 4
    place = finished.folder / "results/next"
    first, last = load_model(place / "models/0.safetensors"), load_model(finished.run / "final.safetensors")
    assert (first.history, first.priors) == ({"iterations": []}, None)
    for name, array in first.state_dict().items():
        np.testing.assert_array_equal(array, last.state_dict()[name])
    scores = json.loads((place / "diagnostics/0.json").read_text())
    best = max(json.loads((finished.run / "combination.json").read_text())["valid_log_probability"].values())
    assert scores["valid"]["log_probability"] == pytest.approx(best, abs=1e-5)
    assert finished.snakemake().jobs == {}
    # Another initial model is another recipe.
    finished.config["runs"]["next"] = settings | {"initial_model": "results/run/models/6.safetensors"}
    assert finished.snakemake().jobs["train"] == 4


def test_unsuitable_initial_model_is_refused(finished: Workplace) -> None:
    model = "results/run/final.safetensors"
    finished.config["runs"] = {"run": {}, "next": {"initial_model": model, "states_per_word": 2}}
    outcome = finished.snakemake("results/next/final.safetensors")
    assert outcome.status == 1
    assert f"error: initial_model: {model}: takes features" in outcome.last_line
    finished.config["runs"] = {"run": {}, "next": {"initial_model": "results/next/final.safetensors"}}
    outcome = finished.snakemake()
    assert (
        outcome.last_line
        == "error: runs: next: initial_model: results/next/final.safetensors is made from the run itself"
    )


@pytest.mark.slow
def test_iteration_without_a_cluster_goes_on_without_a_lost_job(empty: Workplace) -> None:
    empty.config["min_jobs"] = 1
    stop = threading.Event()

    def kill_attempts() -> None:
        while not stop.wait(0.05):
            for pid in running_jobs(empty.folder):
                try:
                    with open(f"/proc/{pid}/cmdline", "rb") as f:
                        if f.read().split(b"\0")[2:5] == [b"train", b"3", b"1"]:
                            os.kill(pid, signal.SIGKILL)
                except OSError:
                    continue

    threading.Thread(target=kill_attempts, daemon=True).start()
    outcome = empty.snakemake("--retries", "1")
    stop.set()
    assert outcome.status == 0, outcome.text
    ledger = (empty.run / "lost.tsv").read_text().splitlines()
    assert [line.split("\t")[:2] for line in ledger[1:]] == [["3", "1"]]
    models_before = empty.models()
    for path in [empty.run / f"{name}.safetensors" for name in ("models/4", "models/5", "jobs/4.1")]:
        path.unlink()
    outcome = empty.snakemake()
    assert outcome.jobs == {"train": 1, "average": 2} | DERIVED
    assert empty.models() == models_before
