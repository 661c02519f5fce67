"""``python -m ngsgd.faces.server``: the server of `ngsgd.forks`, which a call of the workflow starts for its jobs."""

import gc
import importlib

from ngsgd.faces.cli import FORKED
from ngsgd.faces.commands import perform
from ngsgd.forks.server import serve


def load() -> None:
    """Loads what the commands that are forked off need."""
    for module in FORKED.values():
        importlib.import_module(module)
    gc.freeze()  # no fork is to go through it, and make its pages its own


if __name__ == "__main__":
    serve(perform, load)
