"""A real Grid Engine of one host for tests: all of its files in one directory, no process left behind.

The daemons are children of a keeper, a process that this module starts from its own file. Every process of the
cluster, jobs that left their session included, is a descendant of the keeper, which kills them all and removes the
files when it is asked to, and as well when the process that uses the cluster is gone, however it died. It also kills
the clients (`qsub -sync y`, …) of its cluster, which would try to reach the lost master for ever.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

BINARIES: Final = Path("/usr/lib/gridengine")
RESOURCES: Final = Path("/usr/share/gridengine")
PACKAGES: Final = {
    "sge_qmaster": "gridengine-master",
    "sge_execd": "gridengine-exec",
    "sge_shepherd": "gridengine-exec",
    "spooldefaults": "gridengine-client",
    "qconf": "gridengine-client",
    "qsub": "gridengine-client",
    "qstat": "gridengine-client",
}
HOST: Final = "localhost"


@dataclass(frozen=True)
class Job:
    """A job that waits or runs; `state` as qstat shows it: qw, r, Eqw, hqw, dr, …"""

    id: int
    name: str
    state: str
    queue: str | None
    slots: int


class GridEngine:
    """A Grid Engine of one host: slots, GPUs (`-l gpu=1`, counted per job, not per slot), threads (`-pe smp 2`).

    Each queue is given as its name and its number of slots; all of them share the host's GPUs. Nothing of the system
    is changed: root directory, spool and ports are the cluster's own.
    """

    def __init__(
        self, directory: Path | None = None, queues: dict[str, int] | None = None, gpus: int = 2, max_unheard: int = 5
    ) -> None:
        """The cluster's files lie in a new directory below `directory`, by default the one for temporary files."""
        self.directory = directory
        self.queues = queues if queues is not None else {"gpu.q": 4}
        self.gpus = gpus
        self.max_unheard = max_unheard
        self.root = Path()
        self.ports: tuple[int, int] = (0, 0)
        self.master: int | None = None
        self.exec: int | None = None
        self._keeper: subprocess.Popen[bytes] | None = None

    @staticmethod
    def available() -> str | None:
        """Why no Grid Engine can be started here, or None."""
        for program, package in PACKAGES.items():
            if not (BINARIES / program).exists():
                return f"Grid Engine's {program} is missing (Debian package {package})"
        if os.geteuid() != 0:
            return "Grid Engine's daemons work together only if root starts them"
        return None

    @property
    def env(self) -> dict[str, str]:
        """What qsub, qstat and the like need in their environment, beside what is there."""
        return {
            "SGE_ROOT": str(self.root),
            "SGE_CELL": "default",
            "SGE_QMASTER_PORT": str(self.ports[0]),
            "SGE_EXECD_PORT": str(self.ports[1]),
        }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the daemons and return once jobs are accepted and can run."""
        if self._keeper is not None:
            raise RuntimeError("this Grid Engine runs already")
        reason = self.available()
        if reason is not None:
            raise RuntimeError(reason)
        self.root = Path(tempfile.mkdtemp(prefix="gridengine-", dir=self.directory)).resolve()
        self.root.chmod(0o755)
        self.ports = _free_ports()
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(self.root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
        )
        try:
            self._layout()
            self.start_master()
            self._configure()
            self.start_exec()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill all daemons, jobs and waiting clients, until none is left, and remove the cluster's files."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            assert keeper.stdin is not None
            assert keeper.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                keeper.stdin.close()
            keeper.wait()
            keeper.stdout.close()
        self.master = self.exec = None
        self.root = Path()

    def start_master(self) -> None:
        """Start the master and wait until it answers."""
        self.master = self._spawn("sge_qmaster")
        self._wait(lambda: self._try("qconf", "-sh"), "the master does not answer")

    def kill_master(self) -> None:
        """Kill the master at once (SIGKILL); jobs run on."""
        self._kill(self.master)
        self.master = None

    def restart_master(self) -> None:
        """Kill the master and start it anew from its spool.

        A job that ran meanwhile stays listed, and its `qsub -sync y` waits, until the execution daemon (which finds the
        new master half a minute later) is started anew as well: so does Grid Engine 8.1.9.
        """
        self.kill_master()
        self.start_master()

    def start_exec(self) -> None:
        """Start the execution daemon and wait until its queues take jobs."""
        reported = time.time()
        self.exec = self._spawn("sge_execd")
        self._wait(lambda: self._reported(reported), "the execution host does not report")

    def kill_exec(self, jobs: bool = False) -> None:
        """Kill the execution daemon at once; with `jobs` all that it had started, too, as if the host had died."""
        if self.exec is None:
            return
        lost = [pid for pid in _descendants(self._pid()) if pid != self.master] if jobs else []
        self._kill(self.exec)
        self.exec = None
        for pid in lost:
            self._kill(pid)

    def jobs(self) -> list[Job]:
        """All jobs that have not ended."""
        tree = ET.fromstring(self.command("qstat", "-xml", "-u", "*"))
        return [
            Job(
                id=int(job.findtext("JB_job_number", "")),
                name=job.findtext("JB_name", ""),
                state=job.findtext("state", ""),
                queue=job.findtext("queue_name") or None,
                slots=int(job.findtext("slots", "1")),
            )
            for job in tree.iter("job_list")
        ]

    def accounting(self, job: int) -> dict[str, str] | None:
        """The last record of an ended job: failed, exit_status, maxvmem, …; None where there is none yet."""
        result = self._run("qacct", "-j", str(job))
        if result.returncode != 0:
            return None
        record = result.stdout.split("=" * 62)[-1]
        pairs = (line.split(maxsplit=1) for line in record.splitlines() if line.strip())
        return {pair[0]: pair[1].strip() if len(pair) > 1 else "" for pair in pairs}

    def processes(self) -> list[int]:
        """All processes of the cluster but its keeper: daemons, shepherds and jobs."""
        return list(_descendants(self._pid()))

    def command(self, *arguments: str) -> str:
        """The output of one of Grid Engine's commands, which must succeed."""
        result = self._run(*arguments)
        if result.returncode != 0:
            raise RuntimeError(f"{' '.join(arguments)}: {result.stdout}{result.stderr}")
        return result.stdout

    def messages(self) -> str:
        """What the daemons wrote into their logs, for a failed test's report."""
        logs = [*self.root.glob("*.log"), *self.root.glob("spool/**/messages")]
        return "".join(f"== {log.relative_to(self.root)}\n{log.read_text(errors='replace')}" for log in sorted(logs))

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [str(BINARIES / arguments[0]), *arguments[1:]]
        return subprocess.run(argv, env=os.environ | self.env, capture_output=True, text=True, timeout=60, check=False)

    def _try(self, *arguments: str) -> bool:
        return self._run(*arguments).returncode == 0

    def _wait(self, condition: Callable[[], bool], complaint: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise RuntimeError(f"Grid Engine: {complaint}\n{self.messages()}")
            time.sleep(0.05)

    def _pid(self) -> int:
        if self._keeper is None:
            raise RuntimeError("this Grid Engine does not run")
        return self._keeper.pid

    def _spawn(self, program: str) -> int:
        """Have the keeper start a daemon, in the foreground, with a clean environment."""
        keeper = self._keeper
        if keeper is None:
            raise RuntimeError("this Grid Engine does not run")
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SGE_ND": "1", **self.env}
        order = [str(BINARIES / program), str(self.root / f"{program}.log"), env]
        keeper.stdin.write(json.dumps(order).encode() + b"\n")
        keeper.stdin.flush()
        return int(keeper.stdout.readline())

    def _kill(self, pid: int | None) -> None:
        """Kill a process of the cluster and wait until it is gone; the keeper reaps it."""
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self._wait(lambda: not Path(f"/proc/{pid}").exists(), f"process {pid} does not die")

    def _layout(self) -> None:
        """Write what the master reads when it starts for the first time."""
        root, common, spool = self.root, self.root / "default/common", self.root / "spool/qmaster"
        for path in (common, spool / "job_scripts", root / "spool/execd", root / "tmp"):
            path.mkdir(parents=True)
        (root / "tmp").chmod(0o1777)
        arch = subprocess.run([RESOURCES / "util/arch"], capture_output=True, text=True, check=True).stdout.strip()
        (root / "util").symlink_to(RESOURCES / "util")
        for name in ("bin", "lib", "utilbin"):
            (root / name).mkdir()
            (root / name / arch).symlink_to(BINARIES)
        (common / "act_qmaster").write_text(f"{HOST}\n")
        names = sorted({socket.gethostname(), socket.getfqdn()} - {HOST})
        if names:
            (common / "host_aliases").write_text(f"{HOST} {' '.join(names)}\n")
        spooling = f"{common};{spool}"
        bootstrap = {
            "admin_user": "none",
            "default_domain": "none",
            "ignore_fqdn": "false",
            "spooling_method": "classic",
            "spooling_lib": "libspoolc",
            "spooling_params": spooling,
            "binary_path": BINARIES,
            "qmaster_spool_dir": spool,
            "security_mode": "none",
            "listener_threads": 2,
            "worker_threads": 2,
            "scheduler_threads": 1,
        }
        (common / "bootstrap").write_text("".join(f"{key} {value}\n" for key, value in bootstrap.items()))
        configuration = _changed(
            (RESOURCES / "default-configuration").read_text(),
            execd_spool_dir=root / "spool/execd",
            shell_start_mode="unix_behavior",
            min_uid=0,
            min_gid=0,
            load_report_time="0:0:1",
            max_unheard=f"0:0:{self.max_unheard}",
            loglevel="log_info",
            mailer="/bin/true",
            administrator_mail="none",
            reporting_params="accounting=true reporting=false flush_time=0:0:1 accounting_flush_time=0:0:0",
            execd_params="INHERIT_ENV=false",
        )
        (root / "configuration").write_text(configuration)
        resources = RESOURCES / "util/resources"
        shutil.copytree(resources / "centry", root / "centry")
        (root / "centry/gpu").write_text(
            "name gpu\nshortcut gpu\ntype INT\nrelop <=\nrequestable YES\nconsumable JOB\ndefault 0\nurgency 0\n"
        )
        self.command("spoolinit", "classic", "libspoolc", spooling, "init")
        self.command("spooldefaults", "configuration", str(root / "configuration"))
        self.command("spooldefaults", "complexes", str(root / "centry"))
        self.command("spooldefaults", "usersets", str(resources / "usersets"))
        self.command("spooldefaults", "pes", str(resources / "pe"))
        self.command("spooldefaults", "managers", "root")

    def _configure(self) -> None:
        """Tell the running master of the scheduler's haste, the host and the queues."""
        scheduler = {
            "schedule_interval": "0:0:1",
            "flush_submit_sec": 1,
            "flush_finish_sec": 1,
            "job_load_adjustments": "NONE",
            "load_adjustment_decay_time": "0:0:0",
            "schedd_job_info": "true",
        }
        self._apply("-Msconf", _changed(self.command("qconf", "-ssconf"), **scheduler))
        self.command("qconf", "-as", HOST)
        host = {"hostname": HOST, "load_scaling": "NONE", "complex_values": f"gpu={self.gpus}"}
        lists = ("user_lists", "xuser_lists", "projects", "xprojects", "usage_scaling", "report_variables")
        host |= dict.fromkeys(lists, "NONE")
        self._apply("-Ae", "".join(f"{key} {value}\n" for key, value in host.items()))
        template = self.command("qconf", "-sq")
        for name, slots in self.queues.items():
            queue = _changed(
                template,
                qname=name,
                hostlist=HOST,
                slots=slots,
                tmpdir=self.root / "tmp",
                load_thresholds="NONE",
                suspend_thresholds="NONE",
                pe_list="smp",
                qtype="BATCH INTERACTIVE",
                shell="/bin/sh",
                shell_start_mode="unix_behavior",
                rerun="FALSE",
                notify="0:0:5",
            )
            self._apply("-Aq", queue)

    def _apply(self, option: str, text: str) -> None:
        path = self.root / f"qconf{option}"
        path.write_text(text)
        self.command("qconf", option, str(path))

    def _reported(self, since: float) -> bool:
        """Whether all queues are free of the states that forbid jobs, and the host reported anew."""
        pid = self.root / "spool/execd" / HOST / "execd.pid"
        if not pid.exists() or pid.stat().st_mtime < since - 1:
            return False
        tree = ET.fromstring(self.command("qstat", "-f", "-xml"))
        queues = [queue for queue in tree.iter("Queue-List") if queue.find("load_avg") is not None]
        return len(queues) == len(self.queues) and not any(queue.findtext("state") for queue in queues)


def _changed(text: str, **settings: object) -> str:
    """Grid Engine's configuration `text` with other values; continued lines are joined."""
    lines = text.replace("\\\n", " ").splitlines()
    kept = [line for line in lines if line.strip() and line.split()[0] not in settings]
    return "\n".join([*kept, *(f"{key} {value}" for key, value in settings.items())]) + "\n"


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("", 0))
        second.bind(("", 0))
        return first.getsockname()[1], second.getsockname()[1]


def _descendants(ancestor: int) -> Iterator[int]:
    """The processes below `ancestor`, parents before children."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int(Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    pids = children.get(ancestor, [])
    while pids:
        yield from pids
        pids = [child for pid in pids for child in children.get(pid, [])]


def _clients(root: str) -> Iterator[int]:
    """The running commands of Grid Engine that belong to the cluster with this root directory."""
    setting = f"SGE_ROOT={root}".encode()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                program = Path(entry.path, "exe").readlink()
                if program.parent == BINARIES and setting in Path(entry.path, "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


def _keep(owner: int, root: str) -> None:
    """Be the keeper: start the daemons named on standard input; at its end, or at that of `owner`, kill all."""
    import ctypes

    subreaper = 36  # PR_SET_CHILD_SUBREAPER of <sys/prctl.h>: orphans among the descendants become children
    if ctypes.CDLL(None, use_errno=True).prctl(subreaper, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    signal.signal(signal.SIGCHLD, lambda *_: _reap())
    try:
        alive = os.pidfd_open(owner)
        buffer = b""
        while alive not in (ready := select.select([0, alive], [], [])[0]):
            data = os.read(ready[0], 65536)
            if not data:
                return
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                program, log, env = json.loads(line)
                actions = [
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ]
                defaults = [signal.SIGINT, signal.SIGHUP, signal.SIGPIPE]
                pid = os.posix_spawn(program, [program], env, file_actions=actions, setsid=True, setsigdef=defaults)
                os.write(1, b"%d\n" % pid)
    except ProcessLookupError:  # the owner died before it could be watched
        pass
    finally:
        while _reap() or any(_clients(root)):
            for pid in {*_descendants(os.getpid()), *_clients(root)}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        shutil.rmtree(root, ignore_errors=True)


def _reap() -> bool:
    """Collect the ended children; whether any child is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass
    except ChildProcessError:
        return False
    return True


if __name__ == "__main__":
    _keep(int(sys.argv[1]), sys.argv[2])
