"""The workflow as a user starts it: the real Snakemake, in a process of its own."""

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

# Six iterations of two jobs, in half a minute, with models over 1 MB: Snakemake compares checksums of smaller files.
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
        """How many jobs of each rule were started."""
        return dict(Counter(re.findall(r"^(?:local)?(?:rule|checkpoint) (\w+):$", self.text, flags=re.MULTILINE)))

    @property
    def last_line(self) -> str:
        return self.text.strip().splitlines()[-1]


class Workplace:
    """A folder in which the workflow is run.

    Args:
        folder: the folder.
        config: what is given beside the default configuration.
        profile: of a cluster, as a folder of the project.
        environment: what Snakemake is started with beside this process's.
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
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Snakemake, started."""
        (self.folder / "mine.yaml").write_text(json.dumps(self.config))
        return subprocess.Popen(
            [SNAKEMAKE, "--snakefile", ROOT / "Snakefile", *self.profile, *arguments, "--configfile", "mine.yaml"],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Where the tests run in the background of a shell, SIGINT is ignored, and would be here.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            env={name: value for name, value in os.environ.items() if not name.startswith("SNAKEMAKE")}
            | self.environment,
        )

    def snakemake(self, *arguments: str) -> Outcome:
        """Snakemake, to its end."""
        process = self.start(*arguments)
        text = process.communicate(timeout=1500)[0]  # the longest takes five minutes where nothing else runs
        return Outcome(process.returncode, text)

    def models(self) -> dict[str, str]:
        """A hash of each model of the run."""
        return {
            str(path.relative_to(self.run)): hashlib.sha256(path.read_bytes()).hexdigest()
            for folder in ("models", "jobs", ".")
            for path in sorted((self.run / folder).glob("*.safetensors"))
        }


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, few_digits: Path) -> Workplace:
    """A finished run. Tests that change anything work on a copy."""
    place = Workplace(tmp_path_factory.mktemp("undisturbed"), SMALL | {"digits_file": str(few_digits)})
    outcome = place.snakemake()
    assert outcome.status == 0, outcome.text
    return place


@pytest.fixture
def finished(undisturbed: Workplace, tmp_path: Path) -> Workplace:
    """A finished run of its own, times of change and all."""
    shutil.copytree(undisturbed.folder, tmp_path / "finished", symlinks=True)
    return Workplace(tmp_path / "finished", dict(undisturbed.config))


@pytest.fixture
def empty(undisturbed: Workplace, tmp_path: Path) -> Workplace:
    """The same configuration, nothing made."""
    return Workplace(tmp_path / "empty", dict(undisturbed.config))
