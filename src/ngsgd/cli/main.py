"""The ``ngsgd`` command. It imports the subcommands only if the fork server does not run them."""

from __future__ import annotations

import sys

from ngsgd.forkserver.client import delegate

#: Subcommands that the fork server runs (see `ngsgd.forkserver`) and the module of each; all of them import torch.
FORKED_COMMANDS = {
    "train": "ngsgd.training.job",
    "diagnose": "ngsgd.training.diagnose",
    "align": "ngsgd.training.realign",
    "decode": "ngsgd.training.decoding",
}


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] in FORKED_COMMANDS and (status := delegate(sys.argv[1:])) is not None:
        sys.exit(status)
    from ngsgd.cli.commands import run_command

    run_command()
