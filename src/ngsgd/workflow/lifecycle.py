"""The start and the end of a call."""

from __future__ import annotations

import queue
import re
import shutil
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ngsgd.files import remove_abandoned
from ngsgd.forkserver.server import start_server
from ngsgd.locks import RunLock, announce_snakemake_process
from ngsgd.reporting.status import describe_test_scores
from ngsgd.training.call_settings import CallSettings
from ngsgd.training.plan import read_plan
from ngsgd.training.pruning import prune
from ngsgd.training.run import Run
from ngsgd.workflow.plans import Plans
from ngsgd.workflow.snakemake_call import SnakemakeCall

RESULTS = Path("results")


def start_call(lock: RunLock, call: SnakemakeCall, cancel_former_jobs: Any) -> None:
    """Takes the lock of ``results``, ends jobs of a call that has died, and starts the fork server.

    Args:
        lock: the lock, made before the workflow looked at ``results``.
        call: the call of Snakemake.
        cancel_former_jobs: cancels what an earlier call left on the cluster, and returns whether it could.

    Raises:
        NgsgdError: another call is at work, or jobs of an earlier call cannot be cancelled.
    """
    handle_signal_in_thread(signal.SIGTERM)
    lock.claim()
    announce_snakemake_process()
    cancelled = cancel_former_jobs()
    # Unless they were cancelled, jobs of a call that has died may still be writing on other machines.
    remove_abandoned(RESULTS, elsewhere=cancelled)
    if not call.on_cluster:
        start_server()


def handle_signal_in_thread(number: int) -> None:
    """Runs Snakemake's handler of a signal in a thread.

    A handler runs in the main thread, between any two of its instructions. Snakemake's handler waits for the
    scheduler's lock, and would wait for ever if the main thread holds it.
    """
    handler = signal.getsignal(number)
    if not callable(handler):  # Snakemake sets none outside of the main thread
        return
    received: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()

    def listen() -> None:
        while True:
            handler(*received.get())

    threading.Thread(target=listen, daemon=True).start()
    signal.signal(number, lambda *arguments: received.put(arguments))


def report_errors(snakemake_log: str | Path, directory: Path, reasons: Mapping[str, str]) -> None:
    """Prints the last line of each failed job's log, so that it is the last thing that a failed call prints.

    Args:
        snakemake_log: Snakemake's log.
        directory: the working directory of the call, to which the logs' paths are relative.
        reasons: why each job failed, by the path of its log, where the cluster knows it.
    """
    text = Path(snakemake_log).read_text(encoding="utf-8", errors="replace")
    printed: set[str] = set()
    for log in dict.fromkeys(re.findall(r"^ *log: (\S+) \(check log", text, flags=re.MULTILINE)):
        path = directory / log
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        errors = [line for line in lines if line.startswith("error: ")]
        reason = reasons.get(log, "a job was killed, or crashed")
        # Several jobs of a fan-out may fail for the same reason.
        for line in errors or [f"error: {reason}: its log is {log}"]:
            if line not in printed:
                print(line, file=sys.stderr)
            printed.add(line)


def finish_call(runs: Mapping[str, Run], plans: Plans, call: SnakemakeCall, execution: CallSettings) -> None:
    """Removes what is not kept once everything is made, and prints the result of each run."""
    # Snakemake forgets temporary files if it is killed before it has removed them.
    for folder in RESULTS.glob("egs/*/distributed"):
        shutil.rmtree(folder, ignore_errors=True)
    planned = [run for name, run in runs.items() if plans.is_planned(name)]
    finished = [run for run in planned if run.evaluation_file.exists() and run.plan_file.exists()]
    for run in finished:
        num_models = plans.num_iterations(run.folder.name) + 1
        targets = [x for x in range(num_models) if call.is_target(str(run.model_file(x)))]
        prune(run, read_plan(run.plan_file), execution.model_retention, targets, idle=True)
    if not execution.keep_examples and len(finished) == len(runs):
        for run in finished:
            shutil.rmtree(run.examples / "archives", ignore_errors=True)
    for run in planned:
        if run.evaluation_file.exists():
            print(describe_result(run), file=sys.stderr)


def describe_result(run: Run) -> str:
    """One line with the test scores of a run's final model."""
    return f"{run.folder.name}: {describe_test_scores(run)}; {run.folder}/figures/convergence.png"
