"""A process that has loaded what jobs need, and forks one off for each job that asks.

To import torch is nearly all of a short job's start. On one machine a call's jobs can share that: the call starts one
server (`start`), which ends with it; a job's own process (`delegate`) hands over its arguments, folder, environment and
standard streams, waits, and ends as the fork ended. A fork ends at once when that process does, when the server does,
and, like every job, when the scheduler does. Where no server answers, a job is its own process.

Only the same user is served, and only the same installation: another one's address differs.
"""

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
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ngsgd.files import digest

SERVER = "NGSGD_SERVER"  # environment variable: the token of the call's server
STREAMS = 3  # standard input, output and error
LARGEST_REQUEST = 1 << 22  # bytes of arguments and environment
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>

_servers: list[subprocess.Popen[bytes]] = []  # for as long as this program runs


def start() -> None:
    """Starts a server for the jobs that this process starts from here on. It ends when this process does."""
    os.environ[SERVER] = secrets.token_hex(8)
    # It reads from a pipe whose other end nobody has but this program. Not in this one's group: an interrupt from the
    # keyboard is for those who know what to do.
    command = [sys.executable, "-m", "ngsgd.faces.server"]
    _servers.append(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True))


def delegate(arguments: Sequence[str]) -> int | None:
    """Has a fork of the server do what these arguments say.

    Returns:
        The status with which the fork ended; None where there is no server, and nothing has been done.
    """
    token = os.environ.get(SERVER)
    if not token:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(_address(token))
        except OSError:
            return None
        if _user(connection) != os.getuid():
            return None
        request = json.dumps([list(arguments), os.getcwd(), dict(os.environ)]).encode()
        try:
            socket.send_fds(connection, [struct.pack("!I", len(request))], list(range(STREAMS)))
            connection.sendall(request)
            status = connection.recv(1)
        except OSError:
            status = b""
    ended = status[0] if status else 128 + signal.SIGKILL  # it was killed, or the server was
    if ended > 128:  # a shell would say so, but where nobody looks: this is in the job's log
        print(f"error: the job was ended by a signal: {signal.strsignal(ended - 128)}", file=sys.stderr)
    return ended


def serve(run: Callable[[Sequence[str]], None], load: Callable[[], None]) -> None:
    """Serves the jobs of a call until standard input ends, as it does with the program that has called `start`.

    Args:
        run: does what a job's arguments say; in the fork.
        load: loads what jobs need; those that ask in the meantime wait.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(_address(os.environ[SERVER]))
    listener.listen(1024)
    load()
    jobs: dict[int, tuple[int, socket.socket]] = {}  # by the descriptor of the fork: its number, and who waits for it
    while True:
        waiting = [connection for _, connection in jobs.values()]
        watched: list[Any] = [sys.stdin, listener, *jobs, *waiting]
        ready, _, _ = select.select(watched, [], [])
        if sys.stdin in ready:
            os._exit(0)  # the forks end with this process
        for descriptor, (pid, connection) in list(jobs.items()):
            if descriptor in ready:
                _, state = os.waitpid(pid, 0)
                code = os.waitstatus_to_exitcode(state)
                with contextlib.suppress(OSError):
                    connection.sendall(bytes([code if code >= 0 else 128 - code]))
                connection.close()
                os.close(descriptor)
                del jobs[descriptor]
            elif connection in ready:  # who waits has nothing to say: it has ended
                os.kill(pid, signal.SIGKILL)
        if listener in ready:
            connection, _ = listener.accept()
            with contextlib.suppress(OSError, ValueError, struct.error):
                if _user(connection) == os.getuid():
                    request = _received(connection)
                    pid = os.fork()
                    if not pid:
                        _become(run, *request)
                    for stream in request[3]:
                        os.close(stream)
                    jobs[os.pidfd_open(pid)] = pid, connection


def _received(connection: socket.socket) -> tuple[list[str], str, dict[str, str], list[int]]:
    """A job's arguments, folder, environment and streams."""
    connection.settimeout(10.0)  # of one that has connected, and then been stopped
    head, streams, _, _ = socket.recv_fds(connection, 4, STREAMS)
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
    return arguments, folder, environment, streams


def _become(
    run: Callable[[Sequence[str]], None],
    arguments: Sequence[str],
    folder: str,
    environment: Mapping[str, str],
    streams: Sequence[int],
) -> None:
    """Makes this fork the job, and ends with it."""
    status = 1
    try:
        server = os.getppid()
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


def _address(token: str) -> str:
    """Of the server of a call, for this installation. It is no file, and goes with the server."""
    return f"\0ngsgd-{token}-{digest([sys.prefix, sys.version, __file__])}"


def _user(connection: socket.socket) -> int:
    """Whose process is at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    user: int = struct.unpack("3i", credentials)[1]
    return user
