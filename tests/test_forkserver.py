"""Jobs forked off by the fork server behave like separate processes and end with their client."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ngsgd.forkserver.client import SERVER

SO_ACCEPTCON = 0x10000  # from <linux/net.h>

SERVER_PROGRAM = """
import os, sys, time
from ngsgd.forkserver.server import serve
from ngsgd.locks import exit_with_snakemake_process

def run(arguments):
    exit_with_snakemake_process()
    print(*arguments, os.getcwd(), os.environ["JOB_VALUE"], os.environ.get("WORD"))
    print("a message", file=sys.stderr)
    if arguments[0] == "sleep":
        with open(arguments[1], "w") as f:
            f.write(str(os.getpid()))
        time.sleep(600)
    if arguments[0] == "raise":
        raise ValueError("broken")
    sys.exit(int(arguments[1]))

def refuse():
    raise BlockingIOError("no more processes")

if "NO_FORKS" in os.environ:
    os.fork = refuse
serve(run, lambda: time.sleep(0.5))
"""
SCHEDULER_PROGRAM = """
import os, subprocess, sys, time
from ngsgd.locks import announce_snakemake_process
announce_snakemake_process()
server = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, start_new_session=True)
print(os.environ["NGSGD_SNAKEMAKE_PROCESS"], server.pid, flush=True)
sys.stdin.readline()
os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)"])
"""
CLIENT_PROGRAM = """
import sys
from ngsgd.forkserver.client import delegate
status = delegate(sys.argv[1:])
print("no server" if status is None else "", end="")
sys.exit(status)
"""


class Call:
    """Runs a scheduler process with its fork server."""

    def __init__(self, **environment: str) -> None:
        self.environment = os.environ | {SERVER: "a-test" + str(os.getpid()) + str(time.monotonic_ns())} | environment
        self.scheduler = subprocess.Popen(
            [sys.executable, "-c", SCHEDULER_PROGRAM, SERVER_PROGRAM],
            env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.scheduler.stdout is not None
        announced, server = self.scheduler.stdout.readline().split()
        self.server = int(server)
        self.environment |= {"NGSGD_SNAKEMAKE_PROCESS": announced, "JOB_VALUE": "here"}
        wait_until(self.address)

    def job(self, *arguments: object, **options: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", CLIENT_PROGRAM, *map(str, arguments)],
            env=self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            # A shell starts background processes with SIGINT ignored, and the job would inherit this.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **options,
        )  # fmt: skip

    def address(self) -> str | None:
        """Returns the address on which the server listens, or None while the address is only bound."""
        for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
            _, _, _, flags, *_, name = line.split()
            if self.environment[SERVER] in name and int(flags, 16) & SO_ACCEPTCON:
                return "\0" + name.removeprefix("@")
        return None

    def connection(self) -> socket.socket:
        """Returns a connection to the server, for arbitrary requests."""
        address = self.address()
        assert address
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address)
        return connection

    def num_open(self) -> int:
        """Returns the number of file descriptors that the server has open."""
        return len(os.listdir(f"/proc/{self.server}/fd"))

    def end(self) -> None:
        self.scheduler.kill()
        self.scheduler.wait()
        wait_until(lambda: not is_alive(self.server))

    def start_sleeping(self, tmp_path: Path) -> tuple[subprocess.Popen[str], int]:
        """Starts a job that sleeps; returns it and the process id of its fork."""
        note = tmp_path / "pid"
        job = self.job("sleep", note)
        wait_until(lambda: note.exists() and note.read_text())
        return job, int(note.read_text())


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def call() -> Iterator[Call]:
    call = Call()
    yield call
    call.end()


def test_fork_has_the_environment_directory_and_streams_of_its_job(call: Call, tmp_path: Path) -> None:
    call.environment["WORD"] = "own value"
    jobs = [call.job("exit", status, cwd=tmp_path) for status in (0, 3)]
    for job, status in zip(jobs, (0, 3), strict=True):
        assert job.communicate() == (f"exit {status} {tmp_path} here own value\n", "a message\n")
        assert job.returncode == status


def test_exception_in_a_fork_is_reported(call: Call) -> None:
    job = call.job("raise")
    _, stderr = job.communicate()
    assert job.returncode == 1
    assert stderr.endswith("ValueError: broken\n")


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_fork_ends_with_its_job(call: Call, tmp_path: Path, sign: signal.Signals) -> None:
    job, fork = call.start_sleeping(tmp_path)
    job.send_signal(sign)
    wait_until(lambda: not is_alive(fork))
    assert job.wait() != 0
    # The server still accepts jobs.
    assert call.job("exit", 0).wait() == 0


def test_job_ends_with_its_fork(call: Call, tmp_path: Path) -> None:
    job, fork = call.start_sleeping(tmp_path)
    os.kill(fork, signal.SIGSEGV)
    _, stderr = job.communicate()
    assert job.returncode == 128 + signal.SIGSEGV
    assert "ended by a signal: Segmentation fault" in stderr


@pytest.mark.parametrize("killed", ["server", "scheduler"])
def test_job_and_fork_end_with_the_server_or_the_scheduler(call: Call, tmp_path: Path, killed: str) -> None:
    job, fork = call.start_sleeping(tmp_path)
    os.kill(call.server if killed == "server" else call.scheduler.pid, signal.SIGKILL)
    call.scheduler.poll()
    assert job.wait() != 0
    wait_until(lambda: not is_alive(fork))


def test_server_ends_if_its_scheduler_executes_another_program(call: Call) -> None:
    assert call.scheduler.stdin is not None
    call.scheduler.stdin.write("go on\n")
    call.scheduler.stdin.flush()
    wait_until(lambda: not is_alive(call.server))
    assert call.scheduler.poll() is None


def test_malformed_requests_do_not_disturb_the_server(call: Call) -> None:
    before = call.num_open()
    for data in (b"", b"\0\0", b"\0\0\0\4{{{{", b"\0\0\0\1" + b"5", b"\0\0\0\11" + b"[1, 2, 3]", b"\xff\xff\xff\xff"):
        for streams in ([], [1], [0, 1, 2]):
            with call.connection() as connection:
                if data:
                    socket.send_fds(connection, [data], streams)
    assert call.job("exit", 0).wait() == 0
    wait_until(lambda: call.num_open() == before)


def test_job_runs_in_its_own_process_if_fork_fails() -> None:
    call = Call(NO_FORKS="")
    before = call.num_open()
    for _ in range(3):
        assert call.job("exit", 0).communicate(timeout=60) == ("no server", "")
    assert call.num_open() == before
    call.end()


def test_started_server_runs_ngsgd_commands(tmp_path: Path) -> None:
    """Runs the real server, which imports torch."""
    program = "; ".join(
        (
            "import sys, time",
            "from ngsgd.forkserver.client import delegate",
            "from ngsgd.forkserver.server import start_server",
            "start_server()",
            "statuses = (time.sleep(0.1) or delegate(['train', '--help']) for _ in range(600))",
            "sys.exit(next(status for status in statuses if status is not None))",
        )
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage: ngsgd train" in done.stdout


def test_client_runs_nothing_without_a_server() -> None:
    command = [sys.executable, "-c", CLIENT_PROGRAM, "exit", "0"]
    for environment in ({}, {SERVER: "gone"}):
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
        assert done.stdout == "no server"
