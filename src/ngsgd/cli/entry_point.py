"""Entry point of every program of a run: logging, exit with the scheduler, and error messages."""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
import sys
from collections.abc import Iterator

from ngsgd.errors import NgsgdError
from ngsgd.locks import exit_with_snakemake_process


@contextlib.contextmanager
def entry_point(log_path: str | None = None) -> Iterator[None]:
    """Runs a block as a program: warnings are logged, and the project's own errors end it with one line and status 1.

    The program also ends when the scheduler that started it does.

    Args:
        log_path: file to which standard error is redirected; None to leave it unchanged.
    """
    exit_with_snakemake_process()
    # Freezing skips the garbage collection at exit, which with torch takes a quarter of the time of a start.
    atexit.register(gc.freeze)
    if log_path:
        sys.stderr = open(log_path, "w", encoding="utf-8", buffering=1)  # noqa: SIM115  open until the program ends
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s: %(message)s")
    try:
        yield
    except (NgsgdError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        sys.stderr.flush()
        raise SystemExit(1) from None
