"""The ``ngsgd`` command. It imports nothing until it knows that nobody else does what it is to do."""

from __future__ import annotations

import sys

from ngsgd.forks.client import delegate

#: What a call's server does on its machine for those who ask (`ngsgd.forks`), and what each needs: all import torch.
FORKED = {
    "train": "ngsgd.procedure.job",
    "diagnose": "ngsgd.procedure.diagnose",
    "align": "ngsgd.procedure.realign",
    "decode": "ngsgd.procedure.words",
}


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] in FORKED and (status := delegate(sys.argv[1:])) is not None:
        sys.exit(status)
    from ngsgd.faces.commands import perform

    perform()
