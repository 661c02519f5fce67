"""Tests of `ngsgd status` on the files of a real run in several states."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from .conftest import Workplace

NGSGD = Path(sys.executable).parent / "ngsgd"


def status(place: Workplace, *options: str) -> str:
    done = subprocess.run(
        [NGSGD, "status", "results/run", *options], cwd=place.folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_status_of_a_finished_run(undisturbed: Workplace) -> None:
    text = status(undisturbed, "--follow")
    assert "run: finished; on the test set log-probability -" in text
    assert "no Snakemake is running it" in text
    assert "model 6: valid log-probability -" in text
    assert "frames/s" in text


def test_status_of_an_unfinished_run(finished: Workplace) -> None:
    run = finished.run
    for name in ("final", "models/5", "models/6", "jobs/4.2", "jobs/5.1", "jobs/5.2"):
        (run / f"{name}.safetensors").unlink()
    for name in (
        "evaluation.json",
        "progress/5.1.json",
        "progress/5.2.json",
        "progress/5.0.json",
        "diagnostics/4.json",
    ):
        (run / name).unlink()
    path = run / "progress/4.2.json"
    progress = json.loads(path.read_text())
    now = time.time()
    progress |= {"state": "running", "attempt": 2, "number": "77", "host": "node3", "frames": 200, "of": 400}
    path.write_text(json.dumps(progress | {"started": now - 10, "updated": now, "log_probability": -1.25}))
    text = status(finished)
    assert "run: iteration 4 of 0 – 5" in text
    assert "job 1: done in " in text
    assert "job 2: running 50% on node3 (job 77), 20 frames/s, log-probability -1.250 per frame, attempt 2" in text
    assert "model 3: valid" in text  # model 4 has not been scored
    assert "2 to go, expected end 20" in text
    path.write_text(json.dumps(progress | {"started": now - 1000, "updated": now - 900}))
    assert "silent for 90" in status(finished)
    path.write_text(json.dumps(progress | {"state": "failed", "reason": "it was cancelled"}))
    assert "job 2: failed on node3 (job 77), attempt 2: it was cancelled" in status(finished)
    path.write_text("{")  # a malformed file counts as missing
    assert "job 2: waiting" in status(finished)


def test_status_of_a_missing_run(tmp_path: Path) -> None:
    done = subprocess.run([NGSGD, "status", tmp_path / "nothing"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("settings.json: no such file; call snakemake, which makes it")
