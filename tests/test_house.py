"""The rules of the house: layers, what a job may import, formatting, types and lint."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("src", "workflow", "tests", "benchmarks", "docs")


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PATH": path} | environment
    )


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "format", "--check", "."),
        ("ruff", "check", "."),
        ("mypy", "--strict", "src"),
        ("snakefmt", "--check", "Snakefile", "workflow"),
        ("lint-imports",),
        ("typos",),
    ],
    ids=" ".join,
)
def test_style_and_types(command: tuple[str, ...]) -> None:
    outcome = run(*command)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_the_workflow_has_no_lints() -> None:
    """Except one: all rules use the environment that Snakemake runs in, and there is no container of a release yet."""
    outcome = run("snakemake", "--lint")
    lints = set(re.findall(r"^    \* (.*)$", outcome.stdout + outcome.stderr, flags=re.MULTILINE))
    assert lints == {"Specify a conda environment or container for each rule.:"}


def test_c_is_formatted() -> None:
    outcome = run("clang-format", "--dry-run", "--Werror", *map(str, sorted(ROOT.glob("src/ngsgd/ops/cpu/*.[ch]"))))
    assert outcome.returncode == 0, outcome.stderr


def test_no_docstring_or_comment_begins_with_what() -> None:
    pattern = re.compile(r'("""|# |/\* ?)What\b')
    files = [path for kind in ("*.py", "*.smk", "*.[ch]") for top in SOURCES for path in (ROOT / top).rglob(kind)]
    assert len(files) > 200
    assert [str(path) for path in files if pattern.search(path.read_text())] == []


HEAVY = {
    "pandas",
    "matplotlib",
    "lhotse",
    "kaldiio",
    "onnx",
    "snakemake",
    "scipy",
    "jsonschema",
    "yaml",
    "torch._dynamo",
}


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("ngsgd.training.job", HEAVY),
        ("ngsgd.training.diagnose", HEAVY),
        ("ngsgd.training.average", HEAVY | {"torch"}),
        ("ngsgd.cli.commands", HEAVY | {"torch"}),
        ("ngsgd.workflow.inputs", {"torch", "matplotlib", "lhotse", "scipy", "onnx"}),
        ("ngsgd.workflow.configuration", {"torch", "matplotlib", "lhotse", "onnx"}),
        ("ngsgd.cli.main", HEAVY | {"torch", "numpy", "typing", "argparse", "logging", "subprocess"}),
    ],
)
def test_what_runs_in_each_iteration_imports_only_what_it_needs(module: str, without: set[str]) -> None:
    program = f"import {module}, sys; print(*sys.modules)"
    loaded = set(run(sys.executable, "-c", program).stdout.split())
    assert module in loaded
    assert loaded & without == set()


def test_the_public_names_are_there() -> None:
    import ngsgd

    for name in ngsgd.__all__:
        assert getattr(ngsgd, name).__name__ == name
    with pytest.raises(AttributeError):
        ngsgd.nothing  # noqa: B018
