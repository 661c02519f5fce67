"""The frame in which every program of a run works: its log, its end with the scheduler's, and its errors."""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
import sys
from collections.abc import Iterator

from ngsgd.errors import NgsgdError
from ngsgd.locks import exit_with_scheduler


@contextlib.contextmanager
def entry_point(log_path: str | None = None) -> Iterator[None]:
    """Runs a block as a program: what it warns of goes into its log, the project's own errors end it with one line.

    Args:
        log_path: file into which everything written to standard error goes; None to leave it where it is.
    """
    exit_with_scheduler()
    # At its end the interpreter would look for garbage among all that torch has made, for a quarter of a start's time.
    atexit.register(gc.freeze)
    if log_path:
        sys.stderr = open(log_path, "w", encoding="utf-8", buffering=1)  # noqa: SIM115  until the program ends
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s: %(message)s")
    try:
        yield
    except (NgsgdError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        sys.stderr.flush()
        raise SystemExit(1) from None
