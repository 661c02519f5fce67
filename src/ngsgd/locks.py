"""A lock that allows one scheduler per results folder, and jobs that end with their scheduler.

The scheduler's process holds a file lock, which the operating system releases when the process ends, whatever the
reason. Jobs find the scheduler's process through an environment variable and exit when it does.
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

SNAKEMAKE_PROCESS = (
    "NGSGD_SNAKEMAKE_PROCESS"  # environment variable with the `_identity` of the process that runs Snakemake
)


IN_USE = "is being worked on by", "wait for it, or end it, before starting another"


class RunLock:
    """The lock of a results folder, held from `claim` until the process ends.

    Create it before reading the folder's state and claim it before changing that state: `claim` also fails if another
    process held the lock in between, since the state may have changed.

    Args:
        directory: the folder.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)
        self._path = self._directory / ".lock"
        self._file: IO[str] | None = None
        self._initial_holder, self._initially_held = self._last_holder()

    def check_free(self) -> None:
        """Checks that no other process holds the lock.

        Raises:
            NgsgdError: one does; the message names it.
        """
        if self._last_holder()[1]:
            raise self._refusal(*IN_USE)

    def claim(self) -> None:
        """Takes the lock.

        Raises:
            NgsgdError: another process holds the lock, or held it since this object was created; the message names it.
                Or the lock cannot be made, or its file system does not support locks.
        """
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "a+", encoding="utf-8")  # noqa: SIM115  held until the process ends
        except OSError as e:
            raise NgsgdError(
                f"{e.filename}: the lock of {self._directory}/ cannot be made ({e.strerror}); results need a folder "
                "that this user may write to"
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._refusal(*IN_USE) from None
        except OSError as e:
            raise NgsgdError(
                f"{self._path}: the file system does not support locks ({e}); put results/ on another one"
            ) from None
        if self._initially_held or self._read() != self._initial_holder:
            raise self._refusal("was being worked on, until just now, by", "start again")
        try:
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {platform.node()} ({_identity(os.getpid())})")
            self._file.flush()
        except OSError as e:
            raise NgsgdError(f"{self._path}: cannot be written ({e.strerror})") from None

    def _last_holder(self) -> tuple[str, bool]:
        """Returns the last holder of the lock, and whether the lock is held now."""
        try:
            with open(self._path, encoding="utf-8") as f:
                try:
                    fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return f.read(), True
                except OSError:  # locks are not supported; `claim` reports it
                    pass
                return f.read(), False
        except OSError:  # there is none, or `claim` reports why it cannot be read
            return "", False

    def _read(self) -> str:
        return self._path.read_text(encoding="utf-8")

    def _refusal(self, status: str, advice: str) -> NgsgdError:
        holder = self._read().partition(" (")[0] or "another process"
        if self._file:
            self._file.close()
        return NgsgdError(f"{self._directory} {status} {holder}: {advice}")


def lock_holder(directory: str | os.PathLike[str]) -> str | None:
    """Returns a description of the process that holds the lock of a results folder, or None if it is free."""
    path = Path(directory, ".lock")
    try:
        with open(path, encoding="utf-8") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return f.read().partition(" (")[0]
    except OSError:  # there is no lock file, or locks are not supported
        pass
    return None


def announce_snakemake_process() -> None:
    """Makes this process the scheduler of the jobs that it starts from now on; see `exit_with_snakemake_process`."""
    os.environ[SNAKEMAKE_PROCESS] = _identity(os.getpid())


def exit_with_snakemake_process() -> None:
    """Exits this process, with status 143, when the scheduler that started it ends.

    Does nothing without a scheduler or on another machine. No clean-up takes place; temporary files are left behind.
    """
    announced = os.environ.get(SNAKEMAKE_PROCESS)
    if not announced or not announced.startswith(_boot() + ":"):
        return
    pid = int(announced.split(":")[1])
    try:
        descriptor = os.pidfd_open(pid)
        if _identity(pid) != announced:
            os._exit(143)
    except (ProcessLookupError, FileNotFoundError):
        os._exit(143)
    threading.Thread(target=_exit_after, args=(descriptor,), daemon=True).start()


def _exit_after(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.poll()
    os._exit(143)


def _boot() -> str:
    """Returns an identifier of this machine's current boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _identity(pid: int) -> str:
    """Identifies a process by boot, pid and start time, since a pid alone may be reused."""
    started = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    return f"{_boot()}:{pid}:{started}"
