from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ngsgd.training.settings import Settings
from ngsgd.workflow.configuration import run_settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config() -> dict[str, Any]:
    """Returns the default configuration."""
    return yaml.safe_load((ROOT / "config/config.yaml").read_text())


@pytest.fixture
def make_settings(config):
    """Returns a function that makes the settings of one run: the defaults with `changes`."""

    def make(**changes: Any) -> Settings:
        return run_settings({**config, "runs": {"r": changes}})["r"]

    return make
