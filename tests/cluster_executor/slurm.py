"""A real SLURM cluster for tests: munge, a controller and several nodes on this machine, in one temporary directory."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Set
from pathlib import Path
from typing import NamedTuple, Self

from .keeper import Keeper

PACKAGES = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "scontrol": "slurm-client",
    "sinfo": "slurm-client",
    "squeue": "slurm-client",
    "srun": "slurm-client",
}
"""Debian packages of the programs that a cluster needs."""

ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
)
"""States of jobs that have ended."""

CONFIG = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/%n.log
SlurmctldSyslogDebug=quiet
SlurmdSyslogDebug=quiet
SlurmctldDebug=verbose
SlurmdDebug=verbose
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerType=sched/backfill
{scheduling}
KillWait=2
SlurmctldTimeout=5
SlurmdTimeout={timeout}
InactiveLimit=0
MessageTimeout={timeout}
ReturnToService=2
MinJobAge=300
{nodes}
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 MaxTime=INFINITE State=UP DefMemPerCPU=100
PartitionName=urgent Nodes=ALL PriorityTier=10 MaxTime=INFINITE State=UP DefMemPerCPU=100
"""


class Job(NamedTuple):
    """Job as squeue lists it."""

    id: int
    name: str
    state: str


class SlurmError(Exception):
    """Error of the cluster: a command failed or a wait timed out."""


class Slurm:
    """A SLURM cluster of simulated nodes `node1`, `node2`, ... with the partitions `main` (default) and `urgent`.

    A job in `urgent` preempts jobs in `main`, which are requeued. Run `srun` and other commands with `env`. The daemons
    end with this process, however it ends.

    Args:
        nodes: number of nodes.
        cpus: CPUs per node, independent of this machine.
        memory: memory per node in MB, independent of this machine.
        gpus: simulated GPUs per node.
        node_timeout: a dead node counts as down after about three times this many seconds, or at once after `down`.
        scheduling: value of SLURM's SchedulerParameters.
    """

    def __init__(
        self,
        nodes: int = 2,
        *,
        cpus: int = 8,
        memory: int = 16000,
        gpus: int = 2,
        node_timeout: int = 10,
        scheduling: str = "batch_sched_delay=0,sched_interval=1,bf_interval=1",
    ) -> None:
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self.cpus, self.memory, self.gpus, self.node_timeout = cpus, memory, gpus, node_timeout
        self.scheduling = scheduling
        self._directory: Path | None = None
        self._machines: dict[str, Keeper] = {}

    @staticmethod
    def available() -> str | None:
        """Returns the reason why no cluster can run here, or None if one can."""
        if not sys.platform.startswith("linux"):
            return "SLURM needs Linux"
        missing = [program for program in PACKAGES if not _which(program)]
        packages = sorted({PACKAGES[program] for program in missing})
        return f"missing {', '.join(missing)}: apt install {' '.join(packages)}" if missing else None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def directory(self) -> Path:
        """Directory of all files: slurm.conf, keys, sockets, states, logs."""
        if self._directory is None:
            raise SlurmError("the cluster is not started")
        return self._directory

    @property
    def env(self) -> dict[str, str]:
        """Environment for SLURM's commands: that of this process without variables of an outer SLURM."""
        prefixes = ("SLURM", "SRUN_", "SBATCH_", "SALLOC_", "SQUEUE_", "SCONTROL_", "SINFO_", "SCANCEL_", "PMI")
        env = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
        return env | {"SLURM_CONF": str(self.directory / "slurm.conf")}

    def start(self, timeout: float = 30) -> None:
        """Starts all daemons and waits until all nodes are idle."""
        if reason := self.available():
            raise SlurmError(reason)
        if self._directory is not None:
            raise SlurmError("the cluster is already started")
        # The paths of pytest's directories are too long for a Unix socket.
        self._directory = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self._directory.chmod(0o755)
        try:
            self._configure()
            self._machines["head"] = Keeper(self.directory, f"SLURM_CONF={self.directory}/slurm.conf")
            self._start_munge(timeout)
            self.start_controller(timeout)
            for node in self.nodes:
                self._start_slurmd(node)
            self._wait(self._nodes_idle, timeout, "the nodes are not idle")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends all processes of the cluster, its jobs and the commands run with `env`, and removes the directory."""
        if self._directory is None:
            return
        machines = sorted(self._machines.items(), key=lambda item: item[0] == "head")
        for _, machine in machines:
            machine.close()
        for _, machine in machines:
            machine.wait()
        self._machines.clear()
        self._directory = None

    def run(self, *command: str, timeout: float = 30, check: bool = True) -> str:
        """Runs one of SLURM's commands and returns its stdout."""
        done = subprocess.run(
            command, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
        )
        if check and done.returncode:
            raise SlurmError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def jobs(self) -> list[Job]:
        """Returns all jobs that the controller knows, including jobs that ended in the last five minutes."""
        lines = self.run("squeue", "--all", "--array", "--states=all", "--noheader", "--format=%A|%T|%j").splitlines()
        fields = (line.split("|", 2) for line in lines)
        return sorted(Job(int(number), name, state) for number, state, name in fields)

    def job(self, number: int) -> dict[str, str]:
        """Returns the fields of `scontrol show job`, such as JobState, Reason and ExitCode."""
        words = self.run("scontrol", "--oneliner", "show", "job", str(number)).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def node_states(self) -> dict[str, str]:
        """Returns the state of each node in sinfo's words: `idle`, `mixed`, `draining`, `down*`, ..."""
        lines = self.run("sinfo", "--Node", "--noheader", "--partition=main", "--format=%N %T").splitlines()
        return dict(line.split() for line in lines)

    def wait_until_idle(self, timeout: float = 30) -> None:
        """Waits until all jobs have ended and the nodes are idle."""
        self._wait(lambda: all(job.state in ENDED for job in self.jobs()) and self._nodes_idle(), timeout, "still busy")

    def kill_controller(self) -> None:
        """Kills slurmctld (SIGKILL). It forgets the new jobs (their ids are reused) and ended jobs of the last 5 s."""
        self._machines["head"].kill("slurmctld", signal.SIGKILL)

    def stop_controller(self) -> None:
        """Stops slurmctld (SIGTERM), which saves its state. Jobs go on; commands wait for its return."""
        self._machines["head"].kill("slurmctld", signal.SIGTERM)

    def start_controller(self, timeout: float = 30) -> None:
        """Starts slurmctld, which recovers its saved jobs, and waits until it answers and its nodes have registered."""
        self._machines["head"].start("slurmctld", [_which("slurmctld"), "-D"], self.env)

        def answers() -> bool:
            with socket.socket() as client:
                listens = client.connect_ex(("127.0.0.1", self._port)) == 0
            return listens and " is UP" in self.run("scontrol", "ping", check=False)

        self._wait(answers, timeout, "slurmctld does not answer")
        alive = {name for name in self.nodes if name in self._machines and not self._machines[name].dead()}
        self._wait(lambda: self._usable(alive), timeout, "the nodes do not register")

    def restart_controller(self) -> None:
        """Stops slurmctld with SIGTERM and starts it again."""
        self.stop_controller()
        self.start_controller()

    def kill_node(self, name: str, *, everything: bool = False) -> None:
        """Kills a node's slurmd (SIGKILL) or, with `everything`, also its slurmstepds and jobs, like a power failure.

        If `start_node` follows before the node counts as down, jobs whose slurmstepd was killed stay RUNNING for ever.
        """
        if everything:
            machine = self._machines.pop(name)
            machine.close()
            machine.wait()
        else:
            self._machines[name].kill("slurmd", signal.SIGKILL)

    def start_node(self, name: str, timeout: float = 30) -> None:
        """Starts a killed node's slurmd and waits until the controller uses the node again."""
        self._start_slurmd(name)
        self._wait(lambda: self._usable({name}), timeout, f"{name} does not return")

    def drain(self, name: str, reason: str = "test") -> None:
        """Keeps a node from starting more jobs; its running jobs go on."""
        self.run("scontrol", "update", f"NodeName={name}", "State=DRAIN", f"Reason={reason}")

    def down(self, name: str, reason: str = "test") -> None:
        """Declares a node down at once: its jobs fail, or are requeued if submitted with `sbatch --requeue`."""
        self.run("scontrol", "update", f"NodeName={name}", "State=DOWN", f"Reason={reason}")

    def resume(self, name: str, timeout: float = 30) -> None:
        """Returns a drained or downed node to service and waits until it can start jobs."""
        self.run("scontrol", "update", f"NodeName={name}", "State=RESUME")
        self._wait(lambda: self._usable({name}), timeout, f"{name} does not return")

    def logs(self, lines: int = 15) -> str:
        """Returns the last lines of each daemon's log."""
        parts = []
        for path in sorted(self.directory.glob("*.out")):
            if tail := path.read_text(errors="replace").splitlines()[-lines:]:
                parts.append("\n".join([f"--- {path.name}", *tail]))
        return "\n".join(parts)

    def _configure(self) -> None:
        """Writes the configuration, the munge key and the simulated GPUs."""
        self._port, *ports = _free_ports(1 + len(self.nodes))
        gres = f" Gres=gpu:{self.gpus}" if self.gpus else ""
        nodes = [
            f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} "
            f"RealMemory={self.memory}{gres} State=UNKNOWN"
            for name, port in zip(self.nodes, ports, strict=True)
        ]
        config = CONFIG.format(
            directory=self.directory,
            port=self._port,
            user=os.getuid(),
            timeout=self.node_timeout,
            nodes="\n".join(nodes),
            scheduling=f"SchedulerParameters={self.scheduling}" if self.scheduling else "",
        )
        (self.directory / "slurm.conf").write_text(config)
        gpus = [self.directory / f"gpu{number}" for number in range(self.gpus)]
        for gpu in gpus:  # slurmd needs device files
            gpu.symlink_to("/dev/null")
        (self.directory / "gres.conf").write_text("".join(f"Name=gpu File={gpu}\n" for gpu in gpus))
        (self.directory / "state").mkdir(mode=0o700)
        for name in self.nodes:
            (self.directory / name).mkdir()
        key = self.directory / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))

    def _start_munge(self, timeout: float) -> None:
        """Starts munged and waits for its socket."""
        files = {"socket": "munge.socket", "key-file": "munge.key", "log-file": "munged.log", "pid-file": "munged.pid"}
        files |= {"seed-file": "munge.seed"}
        options = [f"--{option}={self.directory}/{name}" for option, name in files.items()]
        self._machines["head"].start("munged", [_which("munged"), "--foreground", "--force", *options], self.env)
        self._wait((self.directory / "munge.socket").exists, timeout, "munged does not start")

    def _start_slurmd(self, name: str) -> None:
        """Starts a node's slurmd."""
        machine = self._machines.get(name) or self._machines.setdefault(name, Keeper(self.directory))
        machine.start("slurmd", [_which("slurmd"), "-D", "-N", name], self.env, log=name)

    def _usable(self, names: Set[str]) -> bool:
        """Returns whether the controller reaches these nodes, even if they are busy or drained."""
        states = self.node_states()
        return all(not states[name].endswith("*") and states[name] not in ("unknown", "down") for name in names)

    def _nodes_idle(self) -> bool:
        """Returns whether all nodes are up and without jobs."""
        return set(self.node_states().values()) == {"idle"}

    def _wait(self, condition: Callable[[], bool], timeout: float, message: str) -> None:
        """Waits until `condition` holds; raises `SlurmError` with the logs after `timeout` or if a daemon has died."""
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                raise SlurmError(f"{message} after {timeout} s\n{self.logs()}")
            dead = [name for machine in self._machines.values() for name in machine.dead()]
            if dead:
                raise SlurmError(f"{message}: {', '.join(dead)} ended\n{self.logs()}")
            time.sleep(0.05)


def _which(program: str) -> str:
    """Returns the path of a program, also from root's directories, or an empty string if there is none."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin") or ""


def _free_ports(count: int) -> list[int]:
    """Returns free ports below the ephemeral range, so that no connection takes them during a restart."""
    ports: list[int] = []
    for port in random.sample(range(10000, 32000), 1000):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise SlurmError("no free ports")
