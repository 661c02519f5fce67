"""Jobs submitted to a cluster, each as a command that waits for it; all are cancelled when this process ends."""

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

SUCCEEDED = "ngsgd: done"  # last line of a successful job's output
STARTED = "ngsgd: begun"  # start of the first line of a job's output; the time follows
KILL_AFTER = 10.0  # seconds from SIGTERM to SIGKILL for a scheduler's command
LOG_LINES = 3  # number of lines from the end of a failed job's log that go into the reason

# Leads a process group. Its standard input closes when this process dies: it then ends the group by SIGTERM and, after
# half a minute, SIGKILL. If it reads a line it exits, and the others go on.
REAPER_SCRIPT = """trap '' TERM; read _ && exit; kill -TERM 0; "$@"; sleep 30; kill -KILL 0"""


class Reaper:
    """A process group of the commands that wait for jobs; it gets SIGTERM when this process ends, however it ends.

    Args:
        cancel_all_command: command to run after SIGTERM, for jobs that remain.
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
        """Ends the reaper.

        Args:
            cancel: whether to end the group's commands, which cancels their jobs, or to leave them running.
        """
        pipe = self._process.stdin
        if pipe is None or pipe.closed:
            return
        with contextlib.suppress(BrokenPipeError):
            if not cancel:
                pipe.write(b"\n")
            pipe.close()

    def cancel(self) -> None:
        """Cancels all jobs."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.group, signal.SIGTERM)
        self.release(cancel=True)


class Submission:
    """A submitted job; creating the object submits it.

    Args:
        scheduler: the scheduler to submit to.
        name: name of the job.
        resources: the job's request.
        script: bash script; it fails with its first failing command.
        environment: environment variables of the scheduler's command.
        reaper: the reaper whose process group the command joins.

    Raises:
        OSError: the scheduler's command cannot be started.
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
        # Lines that go through two separate streams could arrive out of order.
        script = f'exec 2>&1\necho "{STARTED} $(date +%s)"\nset -e\n{script}\necho {SUCCEEDED}'
        self._output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  open until the job has ended
        self._process = subprocess.Popen(
            scheduler.command(name, resources, script),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            process_group=reaper.group,
        )

    def is_running(self) -> bool:
        """Returns whether the job has not ended."""
        if self._process.poll() is not None:
            return False
        if self._kill_at is not None and time.monotonic() > self._kill_at:
            self._process.kill()  # a pending qrsh ignores SIGTERM
        return True

    def cancel(self) -> None:
        """Asks the scheduler's command to cancel the job, which runs until `is_running` is false."""
        self._process.terminate()
        self._kill_at = time.monotonic() + KILL_AFTER

    def abandon(self) -> None:
        """Stops waiting for a job that the scheduler has lost."""
        self._process.kill()

    def outcome(self, logs: Iterable[str]) -> Failure | None:
        """Returns why the job failed, or None if it succeeded.

        A job has succeeded if its output has the line `SUCCEEDED`; the exit status of the command is not reliable.

        Args:
            logs: paths of the job's logs, whose last lines may give the reason.
        """
        self._output.seek(0)
        lines = self._output.read().splitlines()
        if SUCCEEDED in lines:
            return None
        started = next((match for match in (re.fullmatch(rf"{STARTED} (\d+)", line) for line in lines) if match), None)
        output = [line for line in lines if not line.startswith(STARTED)]
        for log in logs:
            with contextlib.suppress(OSError), open(log, encoding="utf-8", errors="replace") as f:
                output += deque(f, maxlen=LOG_LINES)
        seconds = time.time() - int(started[1]) if started else None
        return self._scheduler.outcome("\n".join(output), seconds, self.resources)
