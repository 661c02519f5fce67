"""The side of a job that is to be forked off. All that such a job's own process imports is here: it starts N times."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import zlib
from collections.abc import Sequence

SERVER = "NGSGD_SERVER"  # environment variable: the token of the call's server
STREAMS = 3  # standard input, output and error
LARGEST_REQUEST = 1 << 22  # bytes of arguments and environment
ACCEPTED = b"+"  # what the server says to one whose job it has forked off


def delegate(arguments: Sequence[str]) -> int | None:
    """Has a fork of the server do what these arguments say.

    Returns:
        The status with which the fork ended; None where no server has taken the job.
    """
    token = os.environ.get(SERVER)
    request = json.dumps([list(arguments), os.getcwd(), dict(os.environ)]).encode()
    if not token or len(request) > LARGEST_REQUEST:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(address(token))
            if user(connection) != os.getuid():
                return None
            socket.send_fds(connection, [struct.pack("!I", len(request))], list(range(STREAMS)))
            connection.sendall(request)
            if connection.recv(1) != ACCEPTED:
                return None
        except OSError:
            return None
        try:
            status = connection.recv(1)
        except OSError:
            status = b""
    ended = status[0] if status else 128 + signal.SIGKILL  # it was killed, or the server was
    if ended - 128 in range(1, signal.NSIG):  # a shell would say so, but where nobody looks: this is in the job's log
        print(f"error: the job was ended by a signal: {signal.strsignal(ended - 128)}", file=sys.stderr)
    return ended


def address(token: str) -> str:
    """Of the server of a call, for this installation. It is no file, and goes with the server."""
    return f"\0ngsgd-{token}-{zlib.crc32(repr((sys.prefix, sys.version, __file__)).encode()):08x}"


def user(connection: socket.socket) -> int:
    """Whose process is at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    user: int = struct.unpack("3i", credentials)[1]
    return user
