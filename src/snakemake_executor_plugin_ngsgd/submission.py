"""Jobs that have been handed to a cluster, each as a command that waits for it, and the end of all of them with us."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from snakemake_executor_plugin_ngsgd.scheduler import Failure, Resources, Scheduler

SUCCEEDED = "ngsgd: done"  # what a job says last
STARTED = "ngsgd: begun"  # what it says first, and when that was
PATIENCE = 10.0  # seconds that a scheduler's command has to end when it was told to
LINES = 3  # of the end of a failed job's log, to tell why

# Ends the process group that it leads when it can read no more: when it is dismissed so, or when we have died.
REAPER_SCRIPT = """trap '' TERM; read _ && exit; kill -TERM 0; "$@"; sleep 30; kill -KILL 0"""


class Reaper:
    """A process group for the commands that wait for jobs, which are told to cancel these when this process ends.

    Args:
        last_order: a command that is called then, too.
    """

    def __init__(self, cancel_all_command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            ["sh", "-c", REAPER_SCRIPT, "sh", *cancel_all_command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )

    @property
    def group(self) -> int:
        return self._process.pid

    def release(self, *, cancel: bool) -> None:
        """Ends the warden, which cancels what is under way or leaves it alone."""
        pipe = self._process.stdin
        if pipe is None or pipe.closed:
            return
        with contextlib.suppress(BrokenPipeError):
            if not cancel:
                pipe.write(b"\n")
            pipe.close()

    def cancel(self) -> None:
        """Has all jobs cancelled at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.group, signal.SIGTERM)
        self.release(cancel=True)


class Submission:
    """A job under way.

    Args:
        cluster: its scheduler.
        name: of the job.
        needs: what it asks for.
        script: of bash's, which is to end with status 0.
        environment: that it is started with.
        warden: who ends it with this process.

    Raises:
        OSError: the command cannot be started.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        name: str,
        resources: Resources,
        script: str,
        environment: Mapping[str, str],
        reaper: Reaper,
    ) -> None:
        self.resources = resources
        self._scheduler = scheduler
        self._kill_at: float | None = None
        # Both streams as one, or what is said last might come before something else.
        script = f'exec 2>&1\necho "{STARTED} $(date +%s)"\nset -e\n{script}\necho {SUCCEEDED}'
        self._output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  until the job is done with
        self._process = subprocess.Popen(
            scheduler.command(name, resources, script),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            process_group=reaper.group,
        )

    def is_running(self) -> bool:
        """Whether the job has not ended."""
        if self._process.poll() is not None:
            return False
        if self._kill_at is not None and time.monotonic() > self._kill_at:
            self._process.kill()  # a pending qrsh heeds nothing else
        return True

    def cancel(self) -> None:
        """Has the job cancelled; it is under way until it has ended."""
        self._process.terminate()
        self._kill_at = time.monotonic() + PATIENCE

    def abandon(self) -> None:
        """Waits no more for a job that the cluster does not know any more."""
        self._process.kill()

    def outcome(self, logs: Iterable[str]) -> Failure | None:
        """How the job has ended; None for well.

        The scheduler's word for that is not enough: the job's own is.

        Args:
            logs: of the job, the ends of which may say why it failed.
        """
        self._output.seek(0)
        lines = self._output.read().splitlines()
        if SUCCEEDED in lines:
            return None
        started = next((match for match in (re.fullmatch(rf"{STARTED} (\d+)", line) for line in lines) if match), None)
        output = [line for line in lines if not line.startswith(STARTED)]
        for log in logs:
            with contextlib.suppress(OSError), open(log, encoding="utf-8", errors="replace") as f:
                output += deque(f, maxlen=LINES)
        seconds = time.time() - int(started[1]) if started else None
        return self._scheduler.outcome("\n".join(output), seconds, self.resources)
