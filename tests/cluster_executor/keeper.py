"""The process below which a test's daemons run, so that none of them and none of their jobs is ever left behind.

Both clusters of this folder are made of daemons that detach what they start. A keeper is a subreaper: each orphan below
it becomes its child, so that it finds them all, and kills them when it is told to, or when the process that made it is
gone, however that ended. It runs from this file, without the project.
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
        setting: as in `NAME=value`: what was started with this in its environment, below the keeper or not, ends with
            it, and the directory is removed then. Without, it ends its own and leaves the directory.
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
        """Starts a daemon in the foreground."""
        stdin, stdout = self._pipes()
        print(json.dumps([command, dict(env), f"{log or name}.out"]), file=stdin, flush=True)
        self._daemons[name] = int(stdout.readline())

    def kill(self, name: str, signum: signal.Signals = signal.SIGKILL) -> None:
        """Signals one daemon and waits for its end."""
        pid = self._daemons.pop(name)
        kill(pid, signum)
        while command_line(pid):
            time.sleep(0.01)

    def dead(self) -> list[str]:
        """The daemons that ended by themselves."""
        return [name for name, pid in self._daemons.items() if not command_line(pid)]

    def close(self) -> None:
        """Has the keeper kill all its processes and end."""
        for pipe in self._pipes():
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def wait(self) -> None:
        """Waits for the end after `close`."""
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
    """Of a process; empty if it is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def kill(pid: int, signum: signal.Signals = signal.SIGKILL) -> None:
    """Signals a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)


def _keep(parent: int, directory: Path, setting: str) -> None:
    """Starts a daemon for each line of stdin; at its end, or that of the parent, kills all descendants."""
    libc = ctypes.CDLL(None)
    set_death_signal, set_subreaper = 1, 36  # of <sys/prctl.h>
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
    """Collects the children that ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _all() -> Iterator[int]:
    """The ids of all processes."""
    return (int(entry) for entry in os.listdir("/proc") if entry.isdecimal())


def _parent(pid: int) -> int:
    """The parent of a process, 0 if it has none or is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def _descendants(root: int) -> set[int]:
    """The processes below a process."""
    children: dict[int, list[int]] = {}
    for pid in _all():
        children.setdefault(_parent(pid), []).append(pid)
    found: set[int] = set()
    todo = [root]
    while todo:
        below = children.get(todo.pop(), [])
        found.update(below)
        todo += below
    return found


def _with_environment(setting: str) -> Iterator[int]:
    """The processes that were started with a setting in their environment, without this one and those above it."""
    if not setting:
        return
    above = set()
    pid = os.getpid()
    while pid:
        above.add(pid)
        pid = _parent(pid)
    for pid in _all():
        with contextlib.suppress(OSError):
            if pid not in above and setting.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                yield pid


if __name__ == "__main__":
    _parent_pid, _directory, _setting = json.loads(sys.argv[1])
    _keep(_parent_pid, Path(_directory), _setting)
