"""The fork server: the process from which jobs are forked."""

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

from ngsgd.forkserver.client import ACCEPTED, LARGEST_REQUEST, SERVER, STREAMS, address, peer_uid

PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>

_servers: list[subprocess.Popen[bytes]] = []  # keeps the servers' standard input open until this program ends


def start_server() -> None:
    """Starts a server for the jobs that this process starts from now on; the server ends with this process."""
    os.environ[SERVER] = secrets.token_hex(8)
    # The server ends when its standard input does: only this program has the other end of that pipe. It has a session
    # of its own, since an interrupt from the keyboard is for Snakemake and the jobs to handle.
    command = [sys.executable, "-P", "-m", "ngsgd.cli.fork_server"]
    _servers.append(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True))


def serve(run: Callable[[Sequence[str]], None], load: Callable[[], None]) -> None:
    """Forks jobs on request until standard input ends, that is, until the program that called `start` ends.

    Args:
        run: runs a job with the given arguments; called in the fork.
        load: imports what jobs need; requests that arrive meanwhile wait.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(address(os.environ[SERVER]))
    listener.listen(1024)
    load()
    jobs: dict[int, _Job] = {}  # by the descriptor of the fork and by that of the client's connection
    poll = select.poll()
    for source in (sys.stdin.fileno(), listener.fileno()):
        poll.register(source, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == sys.stdin.fileno():
                os._exit(0)  # the kernel kills the forks with this process
            if descriptor == listener.fileno():
                if job := _accept_job(listener, run):
                    for source in job.descriptors():
                        jobs[source] = job
                        poll.register(source, select.POLLIN)
            elif job := jobs.get(descriptor):
                if descriptor != job.fork:  # the client sends nothing more, so its process has ended
                    os.kill(job.pid, signal.SIGKILL)
                    poll.unregister(descriptor)
                    continue
                for source in job.descriptors():
                    del jobs[source]
                    with contextlib.suppress(KeyError):  # already unregistered if the client has ended
                        poll.unregister(source)
                job.send_status()


class _Job(NamedTuple):
    """A fork and its client.

    Attributes:
        pid: process id of the fork.
        fork: pidfd of the fork, readable when it has ended.
        connection: connection to the client, which waits for the fork.
    """

    pid: int
    fork: int
    connection: socket.socket

    def descriptors(self) -> tuple[int, int]:
        return self.fork, self.connection.fileno()

    def send_status(self) -> None:
        """Sends the exit status of the fork, which has ended, to the client."""
        _, state = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(state)
        with contextlib.suppress(OSError):
            self.connection.sendall(bytes([code if code >= 0 else 128 - code]))
        self.connection.close()
        os.close(self.fork)


def _accept_job(listener: socket.socket, run: Callable[[Sequence[str]], None]) -> _Job | None:
    """Forks the next requested job; on failure closes the connection and returns None, and the client runs the job."""
    streams: list[int] = []
    try:
        connection, _ = listener.accept()
    except OSError:  # too many files are open
        time.sleep(0.1)
        return None
    try:
        if peer_uid(connection) != os.getuid():
            raise PermissionError("the request comes from another user")
        request = _receive_request(connection, streams)
        server = os.getpid()
        pid = os.fork()
        if not pid:
            _run_job(run, *request, streams, server)
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


def _receive_request(connection: socket.socket, streams: list[int]) -> tuple[list[str], str, dict[str, str]]:
    """Receives a job's arguments, folder and environment; appends its streams to a list, even if it then fails."""
    connection.settimeout(10.0)  # the client may be stopped after it has connected
    head, descriptors, _, _ = socket.recv_fds(connection, 4, STREAMS)
    streams += descriptors
    (length,) = struct.unpack("!I", head)
    if len(streams) != STREAMS or length > LARGEST_REQUEST:
        raise ValueError("malformed request")
    parts = b""
    while len(parts) < length:
        part = connection.recv(length - len(parts))
        if not part:
            raise ValueError("the request ends early")
        parts += part
    connection.settimeout(None)
    arguments, folder, environment = json.loads(parts)
    return arguments, folder, environment


def _run_job(
    run: Callable[[Sequence[str]], None],
    arguments: Sequence[str],
    folder: str,
    environment: Mapping[str, str],
    streams: Sequence[int],
    server: int,
) -> None:
    """Runs the job in this fork of the process ``server``, and exits."""
    status = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:
            os._exit(1)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.closerange(STREAMS, os.sysconf("SC_OPEN_MAX"))  # including descriptors of other jobs
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
