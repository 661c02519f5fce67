from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ngsgd.training.settings import Settings, run_settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def schema() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())


@pytest.fixture
def config() -> dict[str, Any]:
    """Returns the default configuration."""
    return yaml.safe_load((ROOT / "config/config.yaml").read_text())


@pytest.fixture
def make_settings(config, schema):
    """Returns a function that makes the settings of one run: the defaults with `changes`."""

    def make(**changes: Any) -> Settings:
        return run_settings({**config, "runs": {"r": changes}}, schema)["r"]

    return make
