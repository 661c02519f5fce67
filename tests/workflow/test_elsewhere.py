"""Tests of the workflow as a part of another one, and of calls from elsewhere: as a module, included, and from another
directory.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import ROOT, Workplace
from .test_rerun import DERIVED

MODULE = f"""
rule mine:
    input:
        "results/run/evaluation.json",
    output:
        "mine.txt",
    shell:
        "cp {{input}} {{output}}"


module ngsgd:
    snakefile:
        "{ROOT}/Snakefile"
    config:
        config["asr"]
"""
PLAIN = (
    MODULE
    + """
use rule * from ngsgd
"""
)
PREFIXED = (
    MODULE
    + """
use rule * from ngsgd as asr_*


use rule train from ngsgd as asr_train with:
    priority: 5
"""
)


def embed(place: Workplace, text: str) -> None:
    """Makes a workflow that uses this one the main one of a working directory."""
    place.snakefile = place.folder / "Snakefile"
    place.snakefile.write_text(text)
    place.config = {"asr": place.config}


def damage(place: Workplace) -> str:
    """Truncates the model of a job that must be averaged again, and returns the beginning of the error."""
    broken = place.run / "jobs/4.2.safetensors"
    broken.write_bytes(broken.read_bytes()[:100_000])
    (place.run / "models/5.safetensors").unlink()
    return "error: results/run/jobs/4.2.safetensors: not a whole safetensors file"


def test_module_with_a_prefix_makes_the_same_models(empty: Workplace, undisturbed: Workplace) -> None:
    embed(empty, PREFIXED)
    outcome = empty.snakemake("--cores", "2", "mine.txt", "asr_all")
    assert outcome.status == 0, outcome.text
    assert (outcome.jobs["asr_train"], outcome.jobs["asr_average"]) == (12, 6)
    assert empty.models() == undisturbed.models()
    assert "run: on the test set log-probability" in outcome.text  # printed at the end of a call
    assert not list((empty.folder / "results/egs").glob("*/distributed"))
    assert (empty.folder / "mine.txt").exists()
    assert empty.snakemake("--cores", "2", "mine.txt", "asr_all").jobs == {}


@pytest.mark.parametrize(("text", "prefix"), [(PLAIN, ""), (PREFIXED, "asr_")])
def test_module_follows_the_rules_of_rerunning(
    finished: Workplace, undisturbed: Workplace, text: str, prefix: str
) -> None:
    embed(finished, text)
    target = f"{prefix}all"
    assert finished.snakemake("--cores", "2", target).jobs == {}
    (finished.run / "models/3.safetensors").unlink()
    outcome = finished.snakemake("--cores", "2", target)
    assert outcome.status == 0, outcome.text
    assert outcome.jobs == {f"{prefix}{rule}": number for rule, number in ({"average": 1} | DERIVED).items()}
    assert finished.models() == undisturbed.models()
    forced = finished.snakemake("--cores", "2", target, "--dry-run", "--forcerun", f"{prefix}train").jobs
    assert (forced[f"{prefix}train"], forced[f"{prefix}average"]) == (12, 6)
    forced = finished.snakemake("--cores", "2", target, "--dry-run", "--forcerun", f"{prefix}evaluate").jobs
    assert forced == {f"{prefix}evaluate": 1, f"{prefix}all": 1}


def test_module_gives_the_reason_of_a_failure_last(finished: Workplace) -> None:
    error = damage(finished)
    embed(finished, PREFIXED + "\n\nonerror:\n    shell('touch theirs')\n")
    outcome = finished.snakemake("--cores", "2", "asr_all")
    assert outcome.status != 0
    assert outcome.last_line.startswith(error)
    assert (finished.folder / "theirs").exists()
    (finished.folder / "theirs").unlink()
    outcome = finished.snakemake("--cores", "2", "--no-hooks", "asr_all")
    assert outcome.last_line.startswith(error)
    assert not (finished.folder / "theirs").exists()


def test_module_holds_the_lock(finished: Workplace) -> None:
    for x in range(1, 7):
        (finished.run / f"models/{x}.safetensors").unlink()
        for n in (1, 2):
            (finished.run / f"jobs/{x - 1}.{n}.safetensors").unlink()
    embed(finished, PREFIXED)
    first = finished.start("--cores", "2", "asr_all", "--nolock")
    lock = finished.folder / "results" / ".lock"
    deadline = time.monotonic() + 60
    while not (lock.exists() and str(first.pid) in lock.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = finished.snakemake("--cores", "2", "asr_all", "--nolock")
    first.kill()
    first.communicate()
    assert second.status != 0
    assert second.last_line.startswith("error: results is being worked on by process")


@pytest.mark.parametrize("line", ['prefix: "asr/"', 'replace_prefix: {"results/": "asr/"}'])
def test_other_paths_for_a_module_are_refused(empty: Workplace, line: str) -> None:
    embed(empty, MODULE + f"    {line}\n\n\nuse rule * from ngsgd\n")
    outcome = empty.snakemake("--cores", "2", "all")
    assert outcome.status != 0
    assert outcome.last_line.startswith("error: prefix and replace_prefix of a module are not possible with ngsgd")


def test_two_configurations_in_one_workflow_are_refused(empty: Workplace) -> None:
    second = MODULE.replace("module ngsgd", "module other").replace('config["asr"]', 'config["asr"] | {"seed": 1}')
    embed(empty, PLAIN + "module other:" + second.partition("module other:")[2] + "\nuse rule * from other as o_*\n")
    outcome = empty.snakemake("--cores", "2", "all")
    assert outcome.status != 0
    assert outcome.last_line.startswith("error: ngsgd is used twice in this workflow, with different configurations")


def test_included_workflow_keeps_the_configuration_of_its_includer(finished: Workplace, undisturbed: Workplace) -> None:
    given = finished.config
    embed(finished, f"config = {given!r}\n\n\ninclude: '{ROOT}/Snakefile'\n")
    finished.config = {}
    assert finished.snakemake("--cores", "2", "all").jobs == {}
    (finished.run / "models/3.safetensors").unlink()
    outcome = finished.snakemake("--cores", "2", "all")
    assert outcome.jobs == {"average": 1} | DERIVED
    assert finished.models() == undisturbed.models()
    error = damage(finished)
    assert finished.snakemake("--cores", "2", "all").last_line.startswith(error)


def with_directory(place: Workplace, folder: Path) -> list[str]:
    arguments = ["--directory", str(place.folder)]
    place.folder = folder
    return arguments


def with_snakefile(place: Workplace, folder: Path) -> list[str]:
    shutil.copytree(ROOT / "workflow", folder / "there/workflow", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("config", "profiles"):
        shutil.copytree(ROOT / name, folder / "there" / name)
    place.snakefile = Path(shutil.copy(ROOT / "Snakefile", folder / "there"))
    return []


@pytest.mark.parametrize("prepare", [with_directory, with_snakefile])
def test_call_from_elsewhere(
    finished: Workplace, undisturbed: Workplace, tmp_path: Path, prepare: Callable[[Workplace, Path], list[str]]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    arguments = prepare(finished, tmp_path / "elsewhere")
    assert finished.snakemake(*arguments, "all").jobs == {}
    (finished.run / "models/3.safetensors").unlink()
    outcome = finished.snakemake(*arguments, "all")
    assert outcome.status == 0, outcome.text
    assert outcome.jobs == {"average": 1} | DERIVED
    assert finished.models() == undisturbed.models()
    error = damage(finished)
    assert finished.snakemake(*arguments, "all").last_line.startswith(error)
    assert not (finished.folder / "results").exists() or not arguments
