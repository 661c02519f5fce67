"""Tests of the resources that the configuration and a profile give to jobs."""

from __future__ import annotations

import re

import pytest

from .conftest import Workplace


def resources_of(place: Workplace, rule: str, *arguments: str) -> str:
    """Returns the resources with which Snakemake would run a rule's job."""
    outcome = place.snakemake("--dry-run", *arguments)
    assert outcome.status == 0, outcome.text
    found = re.search(rf"^(?:local)?rule {rule}:\n(?: .*\n)*? +resources: (.*)$", outcome.text, flags=re.MULTILINE)
    assert found, outcome.text
    return found[1]


@pytest.mark.parametrize(
    ("in_configuration", "in_profile", "printed"),
    [
        ({"mem": "8GB", "runtime": "2h"}, ["mem=8GB", "runtime=2h"], ["mem_mb=8000", "runtime=120"]),
        ({"mem_mb": "8G", "runtime": 30}, ["mem_mb=8G", "runtime=30"], ["mem_mb=8000", "runtime=30"]),
        ({"mem_mb": None}, ["mem_mb=None"], ["mem_mb=0"]),
        ({"mem_mb": 0, "runtime": None}, ["mem_mb=0"], ["mem_mb=0"]),
    ],
)
def test_units_are_understood_alike_in_the_configuration_and_in_a_profile(
    finished: Workplace, in_configuration: dict[str, object], in_profile: list[str], printed: list[str]
) -> None:
    for name in ("jobs/5.2", "models/6"):
        (finished.run / f"{name}.safetensors").unlink()
    by_profile = resources_of(finished, "train", "--default-resources", *in_profile)
    finished.config["resources"] = {"train": in_configuration}
    by_configuration = resources_of(finished, "train", "--default-resources", "mem_mb=1", "runtime=1")
    for text in printed:
        assert text in by_profile.split(", ")
        assert text in by_configuration.split(", ")


@pytest.mark.parametrize(
    ("resources", "line"),
    [
        ({"mem_mb": "much"}, "resources: train: mem_mb: 'much' is not a number of megabytes, or a size such as 8GB"),
        ({"runtime": "soon"}, "resources: train: runtime: 'soon' is not a number of minutes, or a time such as 2h"),
        ({"mem": 1, "mem_mb": 1}, "resources: train: mem and mem_mb are two names of the same: give one of them"),
        ({"mem": 1, "slurm_partition": "x"}, "resources: train: unknown setting 'slurm_partition'; did you mean"),
    ],
)
def test_resources_that_cannot_be_understood_are_refused(empty: Workplace, resources, line: str) -> None:
    empty.config["resources"] = {"train": resources}
    outcome = empty.snakemake()
    assert outcome.status != 0
    assert outcome.last_line.startswith(f"error: {line}")
