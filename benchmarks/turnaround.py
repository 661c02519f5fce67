"""Measures the idle time of a cluster between iterations: python benchmarks/turnaround.py.

It starts a SLURM cluster of one node with default settings. The idle time is measured from the end of an iteration's
last job until all jobs of the next one run: for several ways of submitting jobs that only sleep, and for the workflow
itself, which is compared with a loop that runs the same commands without Snakemake.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import commands

from ngsgd.training.run import Run

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.cluster_executor.slurm import Slurm  # noqa: E402  the cluster of the tests

BIN = Path(sys.executable).parent
ITERATIONS, SECONDS = 4, 3
MEMORY = 1000  # MB requested by a training job
PATIENCE = 200.0  # timeout in seconds

JOB = f"""\
import sys, time
x, n = sys.argv[1:]
begin = time.time()
time.sleep({SECONDS})
open(f"{{x}}.{{n}}.job", "w").write(f"{{begin}} {{time.time()}}")
"""
AVERAGE = 'import sys, numpy; open(f"{sys.argv[1]}.model", "w").write("made")\n'
SNAKEFILE = f"""\
localrules: all, average
rule all:
    input: "{ITERATIONS}.model"
rule train:
    input: lambda w: f"{{w.x}}.model"
    output: "{{x}}.{{n}}.job"
    shell: "{sys.executable} job.py {{wildcards.x}} {{wildcards.n}}"
rule average:
    input: lambda w: [f"{{int(w.next) - 1}}.{{n}}.job" for n in range(int(config["jobs"]))]
    output: "{{next}}.model"
    shell: "{sys.executable} average.py {{wildcards.next}}"
"""


def snakemake(*options: str) -> Callable[[Path, int, dict[str, str]], None]:
    """Returns a way of running the jobs: Snakemake with an executor."""

    def run(folder: Path, jobs: int, environment: dict[str, str]) -> None:
        (folder / "Snakefile").write_text(SNAKEFILE)
        command = [BIN / "snakemake", "--config", f"jobs={jobs}", "-j", "32", "--nolock", *options]
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, timeout=PATIENCE)

    return run


def loop(*submit: str) -> Callable[[Path, int, dict[str, str]], None]:
    """Returns a way of running the jobs: a loop that calls a blocking submit command for each job."""

    def run(folder: Path, jobs: int, environment: dict[str, str]) -> None:
        def job(x: int, n: int) -> None:
            command = [*submit, sys.executable, "job.py", str(x), str(n)]
            subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)

        with ThreadPoolExecutor(jobs) as pool:
            for x in range(ITERATIONS):
                list(pool.map(lambda n, x=x: job(x, n), range(jobs)))
                subprocess.run([sys.executable, "average.py", str(x + 1)], cwd=folder, check=True)

    return run


def array(folder: Path, jobs: int, environment: dict[str, str]) -> None:
    """Runs the jobs by a loop that submits each iteration as a job array and waits for it."""
    for x in range(ITERATIONS):
        subprocess.run(
            ["sbatch", "--wait", f"--array=0-{jobs - 1}",
             "--wrap", f"{sys.executable} job.py {x} $SLURM_ARRAY_TASK_ID"],
            cwd=folder, env=environment, check=True, capture_output=True,
        )  # fmt: skip
        subprocess.run([sys.executable, "average.py", str(x + 1)], cwd=folder, check=True)


def dependencies(folder: Path, jobs: int, environment: dict[str, str]) -> None:
    """Runs the jobs by submitting all arrays and averages at once, each depending on the previous one."""

    def submit(*options: str) -> str:
        done = subprocess.run(
            ["sbatch", "--parsable", *options], cwd=folder, env=environment, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    after: list[str] = []
    for x in range(ITERATIONS):
        wrapped = f"{sys.executable} job.py {x} $SLURM_ARRAY_TASK_ID"
        number = submit(*after, f"--array=0-{jobs - 1}", "--wrap", wrapped)
        average = submit(f"--dependency=afterok:{number}", "--wrap", f"{sys.executable} average.py {x + 1}")
        after = [f"--dependency=afterok:{average}"]
    while not (folder / f"{ITERATIONS}.model").exists():
        time.sleep(0.1)


def allocation(folder: Path, jobs: int, environment: dict[str, str]) -> None:
    """Runs the jobs as steps in one allocation for all iterations."""
    program = (
        "import sys; from benchmarks.turnaround import loop; from pathlib import Path; import os; "
        "loop('srun', '--exact', '--nodes=1', '--ntasks=1', '--mem=100M')"
        "(Path(sys.argv[1]), int(sys.argv[2]), dict(os.environ))"
    )
    command = ["salloc", f"--ntasks={jobs}", f"--mem={100 * jobs}M", sys.executable, "-c", program, folder, str(jobs)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)


WAYS: dict[str, tuple[Callable[[Path, int, dict[str, str]], None], str | None]] = {
    "`ngsgd` executor (`--profile slurm`)": (snakemake("--executor", "ngsgd"), None),
    # Its jobs need /etc/slurm/slurm.conf, which has to be a link to the configuration of this cluster.
    "`snakemake-executor-plugin-slurm`, first look after 1 s": (
        snakemake(
            "--executor", "slurm", "--slurm-init-seconds-before-status-checks", "1",
            "--slurm-status-command", "squeue", "--default-resources", "slurm_partition=main", "slurm_account=none",
            "mem_mb=1000", "runtime=10",
        ),
        "snakemake_executor_plugin_slurm",
    ),
    "`snakemake-executor-plugin-cluster-sync`, `srun`, a look a second": (
        snakemake(
            "--executor", "cluster-sync", "--cluster-sync-submit-cmd", "srun -n1 --mem=1000M",
            "--seconds-between-status-checks", "1",
        ),
        "snakemake_executor_plugin_cluster_sync",
    ),
    "loop without Snakemake: `srun` for each job": (loop("srun", "--nodes=1", "--ntasks=1"), None),
    "loop without Snakemake: an array with `sbatch --wait`": (array, None),
    "no loop: all arrays and averages submitted with dependencies": (dependencies, None),
    "loop without Snakemake: steps in one allocation": (allocation, None),
}  # fmt: skip


def gaps(times: dict[int, list[tuple[float, float]]]) -> list[float]:
    """Returns the seconds between iterations, given start and end of the jobs of each."""
    ends = {x: max(end for _, end in jobs) for x, jobs in times.items()}
    return [max(start for start, _ in times[x + 1]) - ends[x] for x in sorted(times)[:-1]]


def told(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} – {max(values):.2f})"


def sleeping(way: Callable[[Path, int, dict[str, str]], None], jobs: int, cluster: Slurm) -> str:
    """Measures the gaps between iterations of jobs that only sleep."""
    cluster.wait_until_idle(120)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "job.py").write_text(JOB)
        (folder / "average.py").write_text(AVERAGE)
        (folder / "0.model").write_text("made")
        try:
            way(folder, jobs, cluster.env)
        except subprocess.TimeoutExpired:
            return f"not finished within {PATIENCE:.0f} s"
        except subprocess.CalledProcessError as e:
            return "failed: " + " ".join(e.stderr[-200:].decode(errors="replace").split())
        times: dict[int, list[tuple[float, float]]] = {}
        for path in folder.glob("*.job"):
            start, end = map(float, path.read_text().split())
            times.setdefault(int(path.name.split(".")[0]), []).append((start, end))
    return told(gaps(times))


def progress(run: Path) -> dict[int, list[tuple[float, float]]]:
    """Returns start and end of each training job of a run, by iteration."""
    times: dict[int, list[tuple[float, float]]] = {}
    for path in (run / "progress").glob("*.json"):
        x, n = map(int, path.stem.split("."))
        if n:
            fields = json.loads(path.read_text())
            times.setdefault(x, []).append((fields["started"], fields["updated"]))
    return times


def workflow(jobs: int, cluster: Slurm) -> tuple[list[float], float, float]:
    """Returns the gaps between iterations of the workflow, its total seconds, and the total seconds of a plain loop."""
    with tempfile.TemporaryDirectory() as name:
        config = Path(name) / "config.json"
        settings = {"num_jobs_initial": jobs, "num_jobs_final": jobs, "samples_per_iter": 2000, "runs": {"run": {}}}
        # The node can run all jobs of an iteration and the scoring of a model at the same time.
        settings |= {"num_epochs": 8.01 * jobs / (8 * 3), "resources": {"train": {"mem_mb": MEMORY}}}
        config.write_text(json.dumps(settings))
        command = [BIN / "snakemake", "--snakefile", ROOT / "Snakefile", "--profile", ROOT / "slurm", "-j", "32"]

        def make(*targets: str) -> None:
            subprocess.run(
                [*command, *targets, "--configfile", config], cwd=name, env=cluster.env, check=True, capture_output=True
            )

        make("results/run/final.safetensors")
        with contextlib.chdir(name):
            run = Run.open("results/run")
        folder = Path(name) / run.folder
        times = progress(folder)
        last = max(times)
        result = gaps(times), max(e for _, e in times[last]) - min(b for b, _ in times[0])
        for path in [*(folder / "jobs").iterdir(), *(folder / "progress").iterdir()]:
            path.unlink()
        for x in range(1, last + 2):
            (folder / f"models/{x}.safetensors").unlink()

        def train(x: int, n: int) -> None:
            subprocess.run(
                ["srun", "--nodes=1", "--ntasks=1", f"--mem={MEMORY}M", BIN / "ngsgd", *commands.train(run, x, n)],
                cwd=name, env=cluster.env, check=True, capture_output=True,
            )  # fmt: skip

        with ThreadPoolExecutor(jobs) as pool:
            for x in range(last + 1):
                list(pool.map(lambda n, x=x: train(x, n + 1), range(jobs)))
                subprocess.run([BIN / "ngsgd", *commands.end_iteration(run, x, jobs)], cwd=name, check=True)
        times = progress(folder)
        return *result, max(e for _, e in times[last]) - min(b for b, _ in times[0])


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = str(ROOT)
    with Slurm(nodes=1, cpus=16, scheduling="") as cluster:
        print("| sleeping jobs, seconds between iterations: median (minimum – maximum) | 2 jobs | 8 jobs |")
        print("| --- | --- | --- |")
        for name, (way, module) in WAYS.items():
            if module and not importlib.util.find_spec(module):
                print(f"| {name} | not installed | |")
            else:
                print(f"| {name} | {' | '.join(sleeping(way, jobs, cluster) for jobs in (2, 8))} |", flush=True)
        print("\n| the workflow itself | between iterations, s | whole training, s | loop of `srun`, s | ratio |")
        print("| --- | --- | --- | --- | --- |")
        for jobs in (2, 8):
            seconds, total, loop_total = workflow(jobs, cluster)
            print(
                f"| {jobs} jobs | {told(seconds)} | {total:.1f} | {loop_total:.1f} | {total / loop_total:.2f} |",
                flush=True,
            )
