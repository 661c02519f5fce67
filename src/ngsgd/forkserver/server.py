"""The process from which jobs are forked off."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ngsgd.forkserver.client import ACCEPTED, LARGEST_REQUEST, SERVER, STREAMS, address, user

PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>

_servers: list[subprocess.Popen[bytes]] = []  # for as long as this program runs


def start() -> None:
    """Starts a server for the jobs that this process starts from here on. It ends when this process does."""
    os.environ[SERVER] = secrets.token_hex(8)
    # It reads from a pipe whose other end nobody has but this program. Not in this one's group: an interrupt from the
    # keyboard is for those who know what to do.
    command = [sys.executable, "-P", "-m", "ngsgd.cli.fork_server"]
    _servers.append(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True))


def serve(run: Callable[[Sequence[str]], None], load: Callable[[], None]) -> None:
    """Serves the jobs of a call until standard input ends, as it does with the program that has called `start`.

    Args:
        run: does what a job's arguments say; in the fork.
        load: loads what jobs need; those that ask in the meantime wait.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(address(os.environ[SERVER]))
    listener.listen(1024)
    load()
    jobs: dict[int, _Job] = {}  # by the descriptor of the fork, and by that of who waits for it
    poll = select.poll()
    for source in (sys.stdin.fileno(), listener.fileno()):
        poll.register(source, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == sys.stdin.fileno():
                os._exit(0)  # the forks end with this process
            if descriptor == listener.fileno():
                if job := _accepted(listener, run):
                    for source in job.descriptors():
                        jobs[source] = job
                        poll.register(source, select.POLLIN)
            elif job := jobs.get(descriptor):
                if descriptor != job.fork:  # who waits has nothing to say: it has ended
                    os.kill(job.pid, signal.SIGKILL)
                    poll.unregister(descriptor)
                    continue
                for source in job.descriptors():
                    del jobs[source]
                    with contextlib.suppress(KeyError):  # one that has ended is looked at no more
                        poll.unregister(source)
                job.tell()


class _Job(NamedTuple):
    """A fork, and who waits for it.

    Attributes:
        pid: number of the fork.
        fork: descriptor that is ready when it has ended.
        connection: to who waits.
    """

    pid: int
    fork: int
    connection: socket.socket

    def descriptors(self) -> tuple[int, int]:
        return self.fork, self.connection.fileno()

    def tell(self) -> None:
        """Tells who waits how the fork has ended, which it has."""
        _, state = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(state)
        with contextlib.suppress(OSError):
            self.connection.sendall(bytes([code if code >= 0 else 128 - code]))
        self.connection.close()
        os.close(self.fork)


def _accepted(listener: socket.socket, run: Callable[[Sequence[str]], None]) -> _Job | None:
    """Forks off the next job that asks. One that cannot be is none of the server's: it hears so, and does it itself."""
    streams: list[int] = []
    try:
        connection, _ = listener.accept()
    except OSError:  # too many files are open
        time.sleep(0.1)
        return None
    try:
        if user(connection) != os.getuid():
            raise PermissionError("only the same user is served")
        request = _received(connection, streams)
        server = os.getpid()
        pid = os.fork()
        if not pid:
            _become(run, *request, streams, server)
        try:
            job = _Job(pid, os.pidfd_open(pid), connection)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        with contextlib.suppress(OSError):
            connection.sendall(ACCEPTED)
        return job
    except Exception:
        connection.close()
        return None
    finally:
        for stream in streams:
            os.close(stream)


def _received(connection: socket.socket, streams: list[int]) -> tuple[list[str], str, dict[str, str]]:
    """A job's arguments, folder and environment; its streams are put into a list, whatever else may go wrong."""
    connection.settimeout(10.0)  # of one that has connected, and then been stopped
    head, descriptors, _, _ = socket.recv_fds(connection, 4, STREAMS)
    streams += descriptors
    (length,) = struct.unpack("!I", head)
    if len(streams) != STREAMS or length > LARGEST_REQUEST:
        raise ValueError("not a request")
    parts = b""
    while len(parts) < length:
        part = connection.recv(length - len(parts))
        if not part:
            raise ValueError("the request ends early")
        parts += part
    connection.settimeout(None)
    arguments, folder, environment = json.loads(parts)
    return arguments, folder, environment


def _become(
    run: Callable[[Sequence[str]], None],
    arguments: Sequence[str],
    folder: str,
    environment: Mapping[str, str],
    streams: Sequence[int],
    server: int,
) -> None:
    """Makes this fork of the process ``server`` the job, and ends with it."""
    status = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:
            os._exit(1)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.closerange(STREAMS, os.sysconf("SC_OPEN_MAX"))  # among them those of other jobs
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        run(arguments)
        status = 0
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
