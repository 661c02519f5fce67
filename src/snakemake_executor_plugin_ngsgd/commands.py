"""Calls of a scheduler's command-line tools."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from ngsgd.errors import ClusterError

TIMEOUT = 60.0  # seconds


def run_scheduler_command(command: Sequence[str]) -> str:
    """Runs a scheduler's command and returns its standard output.

    Raises:
        ClusterError: the command fails, or takes longer than `TIMEOUT`.
    """
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise ClusterError(f"{command[0]}: {e}") from None
    if done.returncode:
        message = " ".join(done.stderr.split())
        raise ClusterError(f"{' '.join(command)}: exit status {done.returncode}{f': {message}' if message else ''}")
    return done.stdout
