"""``python -m ngsgd.cli.fork_server``: the process from which a workflow call forks its local jobs."""

import gc
import importlib

from ngsgd.cli.commands import run_command
from ngsgd.cli.main import FORKED_COMMANDS
from ngsgd.forkserver.server import serve


def load() -> None:
    """Imports the modules that the forked commands need."""
    for module in FORKED_COMMANDS.values():
        importlib.import_module(module)
    gc.freeze()  # so that a collection in a fork does not copy the shared pages


if __name__ == "__main__":
    serve(run_command, load)
