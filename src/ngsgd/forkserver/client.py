"""The client side of the fork server. It imports little, since every job of an iteration starts such a process."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import zlib
from collections.abc import Sequence

SERVER = "NGSGD_SERVER"  # environment variable with the token of the call's server
STREAMS = 3  # number of standard streams: input, output and error
LARGEST_REQUEST = 1 << 22  # maximum number of bytes of arguments, folder and environment
ACCEPTED = b"+"  # the server's answer when it has forked the job


def delegate(arguments: Sequence[str]) -> int | None:
    """Runs a job with these arguments in a fork of the server, and waits for it.

    Returns:
        Exit status of the fork; None if no server has accepted the job.
    """
    token = os.environ.get(SERVER)
    request = json.dumps([list(arguments), os.getcwd(), dict(os.environ)]).encode()
    if not token or len(request) > LARGEST_REQUEST:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(address(token))
            if peer_uid(connection) != os.getuid():
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
    exit_status = status[0] if status else 128 + signal.SIGKILL  # no status: the fork or the server was killed
    if exit_status - 128 in range(1, signal.NSIG):  # a shell's own message would not be in the job's log
        print(f"error: the job was ended by a signal: {signal.strsignal(exit_status - 128)}", file=sys.stderr)
    return exit_status


def address(token: str) -> str:
    """Returns the address of a call's server for this installation: an abstract socket, which leaves no file."""
    return f"\0ngsgd-{token}-{zlib.crc32(repr((sys.prefix, sys.version, __file__)).encode()):08x}"


def peer_uid(connection: socket.socket) -> int:
    """Returns the user id of the process at the other end of a connection."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    user: int = struct.unpack("3i", credentials)[1]
    return user
