"""One scheduler for a run, and jobs that do not outlive it.

A run's lock is held by the scheduler's process through the operating system, which releases it with its holder,
however that ends. The jobs find the scheduler's process through the environment and end when it does.
"""

from __future__ import annotations

import fcntl
import os
import platform
import select
import threading
from pathlib import Path
from typing import IO

from ngsgd.errors import NgsgdError

SCHEDULER = "NGSGD_SCHEDULER"  # environment variable: machine's boot, process and its start, by which jobs know it


class RunLock:
    """The lock of a results folder, held from `claim` until the process ends.

    Make it before looking at what is there, claim it before changing that: `claim` refuses, too, when another process
    was at work in between, since what was seen then may not be so any more.

    Args:
        directory: the folder.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)
        self._path = self._directory / ".lock"
        self._file: IO[str] | None = None
        self._holder_seen, self._was_held = self._look()

    def claim(self) -> None:
        """Takes the lock.

        Raises:
            NgsgdError: another process holds it, or held it since this object was made; the text says which.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        self._file = open(self._path, "a+", encoding="utf-8")  # noqa: SIM115  held until the process ends
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._refusal("is being worked on by", "wait for it, or end it, before starting another") from None
        except OSError as e:
            raise NgsgdError(f"{self._path}: the file system gives no locks ({e}); put results/ on another") from None
        if self._was_held or self._read() != self._holder_seen:
            raise self._refusal("was being worked on, until just now, by", "start again")
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {platform.node()} ({_identity(os.getpid())})")
        self._file.flush()

    def _look(self) -> tuple[str, bool]:
        """Who held the lock last, and whether it is held now."""
        if not self._path.exists():
            return "", False
        with open(self._path, encoding="utf-8") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return f.read(), True
            except OSError:  # no locks here, which `claim` will complain of
                pass
            return f.read(), False

    def _read(self) -> str:
        return self._path.read_text(encoding="utf-8")

    def _refusal(self, what: str, advice: str) -> NgsgdError:
        lock_holder = self._read().partition(" (")[0] or "another process"
        if self._file:
            self._file.close()
        return NgsgdError(f"{self._directory} {what} {lock_holder}: {advice}")


def lock_holder(directory: str | os.PathLike[str]) -> str | None:
    """Which process holds the lock of a results folder, for people; None where none does."""
    path = Path(directory, ".lock")
    try:
        with open(path, encoding="utf-8") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return f.read().partition(" (")[0]
    except OSError:  # none has been at work, or there are no locks here
        pass
    return None


def announce_scheduler() -> None:
    """Makes this process the one whose end ends the jobs started from here on."""
    os.environ[SCHEDULER] = _identity(os.getpid())


def exit_with_scheduler() -> None:
    """Ends this process when the scheduler that started it ends; does nothing on another machine, or without one.

    The process is ended without ceremony: what it was writing stays under its temporary name.
    """
    announced = os.environ.get(SCHEDULER)
    if not announced or not announced.startswith(_boot() + ":"):
        return
    pid = int(announced.split(":")[1])
    try:
        descriptor = os.pidfd_open(pid)
        if _identity(pid) != announced:
            os._exit(143)
    except (ProcessLookupError, FileNotFoundError):
        os._exit(143)
    threading.Thread(target=_watch, args=(descriptor,), daemon=True).start()


def _watch(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.poll()
    os._exit(143)


def _boot() -> str:
    """Stands for this machine since it was started."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _identity(pid: int) -> str:
    """Stands for one process: its number alone may be given to another after it has ended."""
    started = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    return f"{_boot()}:{pid}:{started}"
