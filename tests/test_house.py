"""The rules of the house: layers, what a job may import, formatting, types and lint."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("kaldi", "ops", "optim", "network", "data", "training", "reporting", "study", "cli")


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


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize(
    "path", sorted((ROOT / "src/ngsgd").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT / "src"))
)
def test_imports_go_down_the_layers(path: Path) -> None:
    names = imports(path)
    assert not any(name.split(".")[0] == "snakemake" for name in names)
    layer = path.parent.name
    if layer in LAYERS:
        above = LAYERS[LAYERS.index(layer) + 1 :]
        assert [name for name in names if name.startswith(tuple(f"ngsgd.{a}" for a in above))] == []
    if layer == "optim":
        assert [n for n in names if n.startswith("ngsgd.") and not n.startswith(("ngsgd.optim", "ngsgd.ops"))] == []


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
