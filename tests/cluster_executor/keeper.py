"""A supervisor process for the daemons of a test, which leaves none of them and none of their jobs behind.

The daemons of both clusters detach the processes that they start. A keeper is a subreaper: orphans below it become its
children, so that it finds all of them. It kills them on `close`, or when the process that started it has ended in any
way. It is run from this file and does not import the project.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO


class Keeper:
    """Starts daemons and ends them.

    Args:
        directory: the daemons' working directory, where each writes `<log>.out`.
        setting: `NAME=value`; processes with this in their environment, below the keeper or not, end with it, and
            the directory is removed. If empty, only the keeper's own processes end and the directory stays.
    """

    def __init__(self, directory: Path, setting: str = "") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, json.dumps([os.getpid(), str(directory), setting])],
            env={},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        self._daemons: dict[str, int] = {}

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str], log: str = "") -> None:
        """Starts a daemon that does not detach itself."""
        stdin, stdout = self._pipes()
        print(json.dumps([command, dict(env), f"{log or name}.out"]), file=stdin, flush=True)
        self._daemons[name] = int(stdout.readline())

    def kill(self, name: str, signum: signal.Signals = signal.SIGKILL) -> None:
        """Sends a signal to a daemon and waits for its end."""
        pid = self._daemons.pop(name)
        kill(pid, signum)
        while command_line(pid):
            time.sleep(0.01)

    def dead(self) -> list[str]:
        """Returns the names of the daemons that ended by themselves."""
        return [name for name, pid in self._daemons.items() if not command_line(pid)]

    def close(self) -> None:
        """Makes the keeper kill all its processes and end; does not wait for it."""
        for pipe in self._pipes():
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def wait(self) -> None:
        """Waits for the keeper to end after `close`; kills it and its processes after 10 s."""
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            for pid in [self.pid, *_descendants(self.pid)]:
                kill(pid)
            self._process.wait()

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout


def command_line(pid: int) -> str:
    """Returns the command line of a process, or an empty string if it is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def kill(pid: int, signum: signal.Signals = signal.SIGKILL) -> None:
    """Sends a signal to a process; does nothing if the process is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)


def _keep(parent: int, directory: Path, setting: str) -> None:
    """Starts a daemon for each line of stdin; kills all descendants when stdin or the parent process ends."""
    libc = ctypes.CDLL(None)
    set_death_signal, set_subreaper = 1, 36  # from <sys/prctl.h>
    libc.prctl(set_subreaper, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    pending = b""
    try:
        while os.getppid() == parent:
            ready, _, _ = select.select([0], [], [], 0.5)
            _reap()
            if not ready:
                continue
            if not (received := os.read(0, 65536)):
                break
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                command, env, log = json.loads(line)
                with open(directory / log, "ab") as output:
                    daemon = subprocess.Popen(
                        command,
                        env=env,
                        cwd=directory,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        start_new_session=True,
                        preexec_fn=lambda: libc.prctl(set_death_signal, signal.SIGKILL, 0, 0, 0),
                    )
                print(daemon.pid, flush=True)
    finally:
        while found := _descendants(os.getpid()) | set(_with_environment(setting)):
            for pid in found:
                kill(pid)
            time.sleep(0.01)
            _reap()
        if setting:
            shutil.rmtree(directory, ignore_errors=True)


def _reap() -> None:
    """Reaps the children that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _all_pids() -> Iterator[int]:
    """Yields the ids of all processes."""
    return (int(entry) for entry in os.listdir("/proc") if entry.isdecimal())


def _parent(pid: int) -> int:
    """Returns the parent of a process, or 0 if it has none or is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def _descendants(root: int) -> set[int]:
    """Returns all descendants of a process."""
    children: dict[int, list[int]] = {}
    for pid in _all_pids():
        children.setdefault(_parent(pid), []).append(pid)
    found: set[int] = set()
    todo = [root]
    while todo:
        below = children.get(todo.pop(), [])
        found.update(below)
        todo += below
    return found


def _with_environment(setting: str) -> Iterator[int]:
    """Yields the processes started with `setting` in their environment, except this one and its ancestors."""
    if not setting:
        return
    ancestors = set()
    pid = os.getpid()
    while pid:
        ancestors.add(pid)
        pid = _parent(pid)
    for pid in _all_pids():
        with contextlib.suppress(OSError):
            if pid not in ancestors and setting.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                yield pid


if __name__ == "__main__":
    _parent_pid, _directory, _setting = json.loads(sys.argv[1])
    _keep(_parent_pid, Path(_directory), _setting)
