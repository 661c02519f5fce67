"""Runs the workflow as a user does: with the real Snakemake, in its own process."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SNAKEMAKE = Path(sys.executable).parent / "snakemake"

# Six iterations of two jobs in half a minute. Models exceed 1 MB, since Snakemake compares checksums of smaller files.
SMALL = {
    "states_per_word": 3,
    "num_valid_utterances": 30,
    "num_test_utterances": 30,
    "splice_indexes": "layer0/-2:-1:0:1:2 layer1/-2:1",
    "num_hidden_layers": 2,
    "add_layers_period": 1,
    "pnorm_input_dim": 1500,
    "pnorm_output_dim": 300,
    "frames_per_eg": 4,
    "samples_per_iter": 400,
    "num_jobs_initial": 2,
    "num_jobs_final": 2,
    "num_epochs": 1,
    "runs": {"run": {}},
}


@dataclass
class Outcome:
    status: int
    text: str

    @property
    def jobs(self) -> dict[str, int]:
        """Number of started jobs of each rule."""
        return dict(Counter(re.findall(r"^(?:local)?(?:rule|checkpoint) (\w+):$", self.text, flags=re.MULTILINE)))

    @property
    def last_line(self) -> str:
        return self.text.strip().splitlines()[-1]


class Workplace:
    """Working directory in which tests run the workflow.

    Args:
        folder: working directory of Snakemake.
        config: settings that differ from the default configuration.
        profile: folder of a cluster's profile in the project.
        environment: variables for Snakemake in addition to those of this process.

    Attributes:
        snakefile: the main Snakefile.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        profile: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.config = config
        self.environment = dict(environment or {})
        self.profile = ["--profile", str(ROOT / profile)] if profile else []
        self.run = folder / "results" / "run"
        self.snakefile = ROOT / "Snakefile"
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts Snakemake."""
        (self.folder / "mine.yaml").write_text(json.dumps(self.config))
        return subprocess.Popen(
            [SNAKEMAKE, "--snakefile", self.snakefile, *self.profile, *arguments, "--configfile", "mine.yaml"],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A shell starts background processes with SIGINT ignored, and Snakemake would inherit this.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            env={name: value for name, value in os.environ.items() if not name.startswith("SNAKEMAKE")}
            | self.environment,
        )

    def snakemake(self, *arguments: str) -> Outcome:
        """Runs Snakemake to its end."""
        process = self.start(*arguments)
        text = process.communicate(timeout=1500)[0]  # the longest run takes five minutes on an idle machine
        return Outcome(process.returncode, text)

    def models(self) -> dict[str, str]:
        """Returns the hash of each model of the run, by its path in the run."""
        return {
            str(path.relative_to(self.run)): hashlib.sha256(path.read_bytes()).hexdigest()
            for folder in ("models", "jobs", ".")
            for path in sorted((self.run / folder).glob("*.safetensors"))
        }


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, few_digits: Path) -> Workplace:
    """Makes a finished run, which tests must not change."""
    place = Workplace(tmp_path_factory.mktemp("undisturbed"), SMALL | {"digits_file": str(few_digits)})
    outcome = place.snakemake()
    assert outcome.status == 0, outcome.text
    return place


@pytest.fixture
def finished(undisturbed: Workplace, tmp_path: Path) -> Workplace:
    """Returns a copy of the finished run, including modification times."""
    shutil.copytree(undisturbed.folder, tmp_path / "finished", symlinks=True)
    return Workplace(tmp_path / "finished", dict(undisturbed.config))


@pytest.fixture
def empty(undisturbed: Workplace, tmp_path: Path) -> Workplace:
    """Returns a working directory with the same configuration and no results."""
    return Workplace(tmp_path / "empty", dict(undisturbed.config))
