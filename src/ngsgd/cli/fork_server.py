"""``python -m ngsgd.cli.fork_server``: the process from which a workflow call forks its local jobs."""

import gc
import importlib

from ngsgd.cli.commands import run_command
from ngsgd.cli.main import FORKED_COMMANDS
from ngsgd.forkserver.server import serve


def load() -> None:
    """Loads what the commands that are forked off need."""
    for module in FORKED_COMMANDS.values():
        importlib.import_module(module)
    gc.freeze()  # no fork is to go through it, and make its pages its own


if __name__ == "__main__":
    serve(run_command, load)
