"""A real Grid Engine of one host for tests, with all files in one directory, which leaves no process behind.

Remaining clients (`qrsh`, ...) are killed, too: they would try to reach the ended master for ever.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from .keeper import Keeper

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
    """Waiting or running job; `state` as qstat shows it: qw, r, Eqw, hqw, dr, …"""

    id: int
    name: str
    state: str
    queue: str | None
    slots: int


class GridEngine:
    """A Grid Engine of one host with slots, GPUs (`-l gpu=1`, per job, not per slot) and threads (`-pe smp 2`).

    It has its own root directory, spool and ports, and changes nothing in the system.

    Args:
        queues: number of slots of each queue, by name.
        gpus: simulated GPUs of the host, shared by all queues.
    """

    def __init__(self, queues: dict[str, int], gpus: int = 2) -> None:
        self.queues = queues
        self.gpus = gpus
        self.root = Path()
        self.ports: tuple[int, int] = (0, 0)
        self._keeper: Keeper | None = None

    @staticmethod
    def available() -> str | None:
        """Returns the reason why no Grid Engine can run here, or None if one can."""
        for program, package in PACKAGES.items():
            if not (BINARIES / program).exists():
                return f"Grid Engine's {program} is missing (Debian package {package})"
        if os.geteuid() != 0:
            return "Grid Engine's daemons work together only if root starts them"
        return None

    @property
    def env(self) -> dict[str, str]:
        """Variables that qsub, qstat, ... need in addition to the environment of this process."""
        return {
            "SGE_ROOT": str(self.root),
            "SGE_CELL": "default",
            "SGE_QMASTER_PORT": str(self.ports[0]),
            "SGE_EXECD_PORT": str(self.ports[1]),
        }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the daemons and waits until jobs can run."""
        if reason := self.available():
            raise RuntimeError(reason)
        self.root = Path(tempfile.mkdtemp(prefix="gridengine-")).resolve()
        self.root.chmod(0o755)
        self.ports = _free_ports()
        self._keeper = Keeper(self.root, f"SGE_ROOT={self.root}")
        try:
            self._layout()
            self.start_master()
            self._configure()
            self.start_exec()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kills all daemons, jobs and waiting clients, and removes the cluster's files."""
        if self._keeper is not None:
            self._keeper.close()
            self._keeper.wait()
            self._keeper = None

    def start_master(self) -> None:
        """Starts the master and waits until it answers."""
        self._start("sge_qmaster")
        self._wait(lambda: self._run("qconf", "-sh").returncode == 0, "the master does not answer")

    def restart_master(self) -> None:
        """Kills the master and starts it again from its spool.

        With Grid Engine 8.1.9, jobs that ran meanwhile stay listed until the execution daemon is restarted as well;
        it finds the new master half a minute later.
        """
        self.keeper.kill("sge_qmaster")
        self.start_master()

    def start_exec(self) -> None:
        """Starts the execution daemon and waits until its queues accept jobs."""
        reported = time.time()
        self._start("sge_execd")
        self._wait(lambda: self._reported(reported), "the execution host does not report")

    def kill_exec(self) -> None:
        """Kills the execution daemon; its jobs go on."""
        self.keeper.kill("sge_execd")

    def jobs(self) -> list[Job]:
        """Returns all jobs that have not ended."""
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

    def command(self, *arguments: str) -> str:
        """Runs one of Grid Engine's commands and returns its stdout; raises `RuntimeError` if it fails."""
        result = self._run(*arguments)
        if result.returncode != 0:
            raise RuntimeError(f"{' '.join(arguments)}: {result.stdout}{result.stderr}")
        return result.stdout

    def messages(self) -> str:
        """Returns the logs of all daemons, for the report of a failed test."""
        logs = [*self.root.glob("*.out"), *self.root.glob("spool/**/messages")]
        return "".join(f"== {log.relative_to(self.root)}\n{log.read_text(errors='replace')}" for log in sorted(logs))

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [str(BINARIES / arguments[0]), *arguments[1:]]
        return subprocess.run(argv, env=os.environ | self.env, capture_output=True, text=True, timeout=60, check=False)

    def _wait(self, condition: Callable[[], bool], message: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise RuntimeError(f"Grid Engine: {message}\n{self.messages()}")
            time.sleep(0.05)

    @property
    def keeper(self) -> Keeper:
        if self._keeper is None:
            raise RuntimeError("this Grid Engine does not run")
        return self._keeper

    def _start(self, program: str) -> None:
        """Starts a daemon below the keeper, in the foreground, with a clean environment."""
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SGE_ND": "1", **self.env}
        self.keeper.start(program, [str(BINARIES / program)], env)

    def _layout(self) -> None:
        """Writes the files that the master reads at its first start."""
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
        configuration = _replace_settings(
            (RESOURCES / "default-configuration").read_text(),
            execd_spool_dir=root / "spool/execd",
            shell_start_mode="unix_behavior",
            min_uid=0,
            min_gid=0,
            load_report_time="0:0:1",
            max_unheard="0:0:5",
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
        """Configures the running master: short scheduling intervals, the host and the queues."""
        scheduler = {
            "schedule_interval": "0:0:1",
            "flush_submit_sec": 1,
            "flush_finish_sec": 1,
            "job_load_adjustments": "NONE",
            "load_adjustment_decay_time": "0:0:0",
            "schedd_job_info": "true",
        }
        self._apply("-Msconf", _replace_settings(self.command("qconf", "-ssconf"), **scheduler))
        self.command("qconf", "-as", HOST)
        host = {"hostname": HOST, "load_scaling": "NONE", "complex_values": f"gpu={self.gpus}"}
        lists = ("user_lists", "xuser_lists", "projects", "xprojects", "usage_scaling", "report_variables")
        host |= dict.fromkeys(lists, "NONE")
        self._apply("-Ae", "".join(f"{key} {value}\n" for key, value in host.items()))
        template = self.command("qconf", "-sq")
        for name, slots in self.queues.items():
            queue = _replace_settings(
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
        """Returns whether the host has reported after `since` and no queue is in a state that forbids jobs."""
        pid = self.root / "spool/execd" / HOST / "execd.pid"
        if not pid.exists() or pid.stat().st_mtime < since - 1:
            return False
        tree = ET.fromstring(self.command("qstat", "-f", "-xml"))
        queues = [queue for queue in tree.iter("Queue-List") if queue.find("load_avg") is not None]
        return len(queues) == len(self.queues) and not any(queue.findtext("state") for queue in queues)


def _replace_settings(text: str, **settings: object) -> str:
    """Returns Grid Engine's configuration `text` with `settings` replaced and continued lines joined."""
    lines = text.replace("\\\n", " ").splitlines()
    kept = [line for line in lines if line.strip() and line.split()[0] not in settings]
    return "\n".join([*kept, *(f"{key} {value}" for key, value in settings.items())]) + "\n"


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("", 0))
        second.bind(("", 0))
        return first.getsockname()[1], second.getsockname()[1]
