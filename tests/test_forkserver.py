"""Jobs that a server forks off: as good as processes of their own, and never longer there than these."""

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

SO_ACCEPTCON = 0x10000  # of <linux/net.h>

SERVING = """
import os, sys, time
from ngsgd.forkserver.server import serve
from ngsgd.locks import exit_with_scheduler

def run(arguments):
    exit_with_scheduler()
    print(*arguments, os.getcwd(), os.environ["GIVEN"], os.environ.get("WORD"))
    print("a complaint", file=sys.stderr)
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
SCHEDULING = """
import os, subprocess, sys, time
from ngsgd.locks import announce_scheduler
announce_scheduler()
server = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, start_new_session=True)
print(os.environ["NGSGD_SCHEDULER"], server.pid, flush=True)
sys.stdin.readline()
os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)"])
"""
CLIENT = """
import sys
from ngsgd.forkserver.client import delegate
status = delegate(sys.argv[1:])
print("nobody" if status is None else "", end="")
sys.exit(status)
"""


class Call:
    """A scheduler with its server."""

    def __init__(self, **environment: str) -> None:
        self.environment = os.environ | {SERVER: "a-test" + str(os.getpid()) + str(time.monotonic_ns())} | environment
        self.scheduler = subprocess.Popen(
            [sys.executable, "-c", SCHEDULING, SERVING],
            env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.scheduler.stdout is not None
        announced, server = self.scheduler.stdout.readline().split()
        self.server = int(server)
        self.environment |= {"NGSGD_SCHEDULER": announced, "GIVEN": "here"}
        until(self.address)

    def job(self, *arguments: object, **options: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", CLIENT, *map(str, arguments)],
            env=self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            # Where the tests run in the background of a shell, SIGINT is ignored, and would be here.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **options,
        )  # fmt: skip

    def address(self) -> str | None:
        """Of the server, once it listens there: an address may be bound for a while before."""
        for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
            _, _, _, flags, *_, name = line.split()
            if self.environment[SERVER] in name and int(flags, 16) & SO_ACCEPTCON:
                return "\0" + name.removeprefix("@")
        return None

    def connection(self) -> socket.socket:
        """One to the server, to say what one likes."""
        address = self.address()
        assert address
        made = socket.socket(socket.AF_UNIX)
        made.connect(address)
        return made

    def num_open(self) -> int:
        """How many descriptors the server has open."""
        return len(os.listdir(f"/proc/{self.server}/fd"))

    def end(self) -> None:
        self.scheduler.kill()
        self.scheduler.wait()
        until(lambda: not lives(self.server))

    def sleeping(self, tmp_path: Path) -> tuple[subprocess.Popen[str], int]:
        """A job that sleeps, and the number of its fork."""
        note = tmp_path / "pid"
        job = self.job("sleep", note)
        until(lambda: note.exists() and note.read_text())
        return job, int(note.read_text())


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def call() -> Iterator[Call]:
    made = Call()
    yield made
    made.end()


def test_a_fork_has_what_its_job_has(call: Call, tmp_path: Path) -> None:
    call.environment["WORD"] = "of its own"
    jobs = [call.job("exit", status, cwd=tmp_path) for status in (0, 3)]
    for job, status in zip(jobs, (0, 3), strict=True):
        assert job.communicate() == (f"exit {status} {tmp_path} here of its own\n", "a complaint\n")
        assert job.returncode == status


def test_what_breaks_is_told(call: Call) -> None:
    job = call.job("raise")
    _, complaint = job.communicate()
    assert job.returncode == 1
    assert complaint.endswith("ValueError: broken\n")


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_fork_ends_with_its_job(call: Call, tmp_path: Path, by: signal.Signals) -> None:
    job, fork = call.sleeping(tmp_path)
    job.send_signal(by)
    until(lambda: not lives(fork))
    assert job.wait() != 0
    # The server serves on.
    assert call.job("exit", 0).wait() == 0


def test_a_job_ends_with_its_fork(call: Call, tmp_path: Path) -> None:
    job, fork = call.sleeping(tmp_path)
    os.kill(fork, signal.SIGSEGV)
    _, complaint = job.communicate()
    assert job.returncode == 128 + signal.SIGSEGV
    assert "ended by a signal: Segmentation fault" in complaint


@pytest.mark.parametrize("who", ["server", "scheduler"])
def test_all_end_with_the_server_and_with_the_scheduler(call: Call, tmp_path: Path, who: str) -> None:
    job, fork = call.sleeping(tmp_path)
    os.kill(call.server if who == "server" else call.scheduler.pid, signal.SIGKILL)
    call.scheduler.poll()
    assert job.wait() != 0
    until(lambda: not lives(fork))


def test_the_server_ends_when_its_scheduler_goes_on_as_another_program(call: Call) -> None:
    assert call.scheduler.stdin is not None
    call.scheduler.stdin.write("go on\n")
    call.scheduler.stdin.flush()
    until(lambda: not lives(call.server))
    assert call.scheduler.poll() is None


def test_who_sends_nonsense_or_nothing_disturbs_nobody(call: Call) -> None:
    before = call.num_open()
    for said in (b"", b"\0\0", b"\0\0\0\4{{{{", b"\0\0\0\1" + b"5", b"\0\0\0\11" + b"[1, 2, 3]", b"\xff\xff\xff\xff"):
        for streams in ([], [1], [0, 1, 2]):
            with call.connection() as connection:
                if said:
                    socket.send_fds(connection, [said], streams)
    assert call.job("exit", 0).wait() == 0
    until(lambda: call.num_open() == before)


def test_a_job_that_cannot_be_forked_off_is_its_own_process() -> None:
    call = Call(NO_FORKS="")
    before = call.num_open()
    for _ in range(3):
        assert call.job("exit", 0).communicate(timeout=60) == ("nobody", "")
    assert call.num_open() == before
    call.end()


def test_a_call_starts_a_server_that_knows_the_jobs(tmp_path: Path) -> None:
    """The real one, which has torch."""
    program = "; ".join(
        (
            "import sys, time",
            "from ngsgd.forkserver.client import delegate",
            "from ngsgd.forkserver.server import start",
            "start()",
            "asked = (time.sleep(0.1) or delegate(['train', '--help']) for _ in range(600))",
            "sys.exit(next(status for status in asked if status is not None))",
        )
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage: ngsgd train" in done.stdout


def test_without_a_server_nothing_is_done() -> None:
    command = [sys.executable, "-c", CLIENT, "exit", "0"]
    for environment in ({}, {SERVER: "gone"}):
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
        assert done.stdout == "nobody"
