"""Makes the pictures of docs/architecture.md, as Mermaid diagrams: ``make docs``, after ``make run``.

The layers are read from the import-linter contract, the rules from Snakemake's own graph, and the calls from a training
step that is traced.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from ngsgd import NGSGD
from ngsgd.network.splices import parse_splice_indexes
from ngsgd.network.topology import HiddenLayers, initial_model

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/architecture.md"
# A step of training that is forced makes the input functions name everything, and not only what is missing.
FORCED = ("train", "sample", "transform")


def layers() -> str:
    """The layers of the library, from the contract that import-linter checks."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contract = config["tool"]["importlinter"]["contracts"][0]
    rows = [layer.replace("ngsgd.", "").replace(" | ", ", ") for layer in contract["layers"]]
    nodes = [f'    L{i}["{row}"]' for i, row in enumerate(rows)]
    edges = [f"    L{i} --> L{i + 1}" for i in range(len(rows) - 1)]
    return "\n".join(["flowchart TB", *nodes, *edges])


def rules() -> str:
    """The rules of a run, from Snakemake."""
    command = ["snakemake", "--config", "runs={ng-sgd: {}}", "--forcerun", *FORCED, "--rulegraph", "mermaid-js"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [line.strip() for line in output.splitlines()]
    names = dict(match.groups() for line in lines if (match := re.fullmatch(r"(id\d+)\[(\w+)\]", line)))
    edges = sorted(
        (names[match[1]], names[match[2]]) for line in lines if (match := re.fullmatch(r"(id\d+) --> (id\d+)", line))
    )
    return "\n".join(["flowchart LR", *(f"    {before} --> {after}" for before, after in edges)])


def minibatch() -> str:
    """The calls between the modules in one training step."""
    shape = HiddenLayers(parse_splice_indexes("layer0/-1:0:1"), "pnorm", 24, 6, batchnorm=False)
    model = initial_model(shape, (np.eye(12), np.zeros(12)), np.ones(5, np.int64), 0).train()
    x, labels = torch.randn(40, 3, 4), torch.arange(40) % 5
    calls: dict[tuple[str, str, str], None] = {}

    def module_of(frame: FrameType | None) -> str | None:
        name = frame.f_globals.get("__name__", "") if frame else ""
        return name.removeprefix("ngsgd.") if name.startswith("ngsgd.") else "job" if name == __name__ else None

    def record(frame: FrameType, event: str, argument: Any) -> None:
        callee, function = module_of(frame), frame.f_code.co_name
        caller_frame = frame.f_back
        while caller_frame is not None and module_of(caller_frame) is None:
            caller_frame = caller_frame.f_back
        caller = module_of(caller_frame)
        if event == "call" and callee and caller and callee != caller and not function.startswith(("_", "<")):
            calls.setdefault((caller, callee, function))

    with model.training_layout():
        optimizer = NGSGD(model, lr=0.02, rank_in=3, rank_out=8)
        model.backpropagate(x, labels)
        optimizer.step()  # starts the Fisher estimates
        sys.setprofile(record)
        optimizer.zero_grad()
        model.backpropagate(x, labels)
        optimizer.step()
        sys.setprofile(None)
    wanted = {
        "zero_grad", "backpropagate", "forward_backward", "on_backward", "collect", "step", "pop", "prepare",
        "preconditioned_step", "record",
    }  # fmt: skip
    arrows = [f"    {caller} ->> {callee}: {function}" for caller, callee, function in calls if function in wanted]
    return "\n".join(["sequenceDiagram", *arrows])


def main() -> None:
    """Replaces the diagrams between the markers of the page."""
    text = PAGE.read_text(encoding="utf-8")
    for name, diagram in (("layers", layers()), ("rules", rules()), ("minibatch", minibatch())):
        block = f"<!-- {name} -->\n```mermaid\n{diagram}\n```\n<!-- end -->"
        text = re.sub(rf"<!-- {name} -->.*?<!-- end -->", lambda _, block=block: block, text, flags=re.DOTALL)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
