"""Asking a scheduler by its commands."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from ngsgd.errors import ClusterError

PATIENCE = 60.0  # seconds that a scheduler has for an answer


def run_scheduler_command(command: Sequence[str]) -> str:
    """What a command of the scheduler's prints.

    Raises:
        ClusterError: it fails, or takes too long.
    """
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise ClusterError(f"{command[0]}: {e}") from None
    if done.returncode:
        raise ClusterError(f"{' '.join(command)}: {' '.join(done.stderr.split())}")
    return done.stdout
