"""The ``ngsgd`` command. What a subcommand needs is imported when it is called: a training job starts at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from ngsgd.faces.program import program


def _train(arguments: argparse.Namespace) -> None:
    from ngsgd.procedure.job import run_job
    from ngsgd.procedure.plan import find_job
    from ngsgd.procedure.run import Run

    run = Run.open(arguments.run)
    job = find_job(run.plan, arguments.iteration, arguments.job)
    output = run.job(job.iteration, job.job)
    run_job(run.settings, job, run.model(job.iteration), run.archive(job.archive), output)


def _average(arguments: argparse.Namespace) -> None:
    from ngsgd.procedure.average import end_iteration
    from ngsgd.procedure.plan import iteration_jobs
    from ngsgd.procedure.run import Run

    run, x = Run.open(arguments.run), arguments.iteration
    jobs = [run.job(x, job.job) for job in iteration_jobs(run.plan, x)]
    end_iteration(jobs, run.model(x), run.settings.max_log_probability_gap, run.model(x + 1), run.report(x + 1))


def _diagnose(arguments: argparse.Namespace) -> None:
    from ngsgd.procedure.diagnose import diagnose
    from ngsgd.procedure.run import Run

    run, x = Run.open(arguments.run), arguments.iteration
    context, threads = run.settings.context(), run.settings.threads
    diagnose(run.model(x), run.valid, run.train_subset, context, threads, run.diagnostics(x))


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="ngsgd", description="Parallel training of acoustic models with NG-SGD.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(function=function)
        return made

    train = command("train", _train, "One training job of a run's plan.")
    train.add_argument("run", help="folder of the run")
    train.add_argument("iteration", type=int)
    train.add_argument("job", type=int)

    average = command(
        "end-iteration", _average, "Makes the next model: the average of an iteration's jobs, or the best."
    )
    average.add_argument("run", help="folder of the run")
    average.add_argument("iteration", type=int)

    diagnose = command("diagnose", _diagnose, "The scores of a run's model on its validation and training subsets.")
    diagnose.add_argument("run", help="folder of the run")
    diagnose.add_argument("iteration", type=int, help="the model from which this iteration starts")
    return top


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    with program():
        arguments.function(arguments)
