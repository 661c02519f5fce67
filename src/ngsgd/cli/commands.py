"""Implements the subcommands of ``ngsgd``; each imports its modules when it is called."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ngsgd.cli.entry_point import entry_point

if TYPE_CHECKING:
    from ngsgd.training.plan import Job
    from ngsgd.training.run import Run


def _train(arguments: argparse.Namespace) -> None:
    from ngsgd.training.job import run_job
    from ngsgd.training.run import Run

    run = Run.open(arguments.run)
    job = _job(run, arguments.iteration, arguments.job)
    output, progress = run.job(job.iteration, job.job), run.progress(job.iteration, job.job)
    labels = run.labels(job.alignment, job.archive)
    run_job(run.settings, job, run.model(job.iteration), run.archive(job.archive), output, progress, labels)


def _job(run: Run, iteration: int, number: int) -> Job:
    """Returns a job of the plan, adjusted for jobs that were lost before it.

    Raises:
        DataError: the iteration has no such job.
    """
    from ngsgd.errors import DataError
    from ngsgd.network.storage import read_header
    from ngsgd.training.lost_jobs import jobs_after_losses, lost_jobs_in_history

    for job in jobs_after_losses(
        run.plan, iteration, lost_jobs_in_history(read_header(run.model(iteration))["history"])
    ):
        if job.job == number:
            return job
    raise DataError(f"{run.plan}: no job {number} in iteration {iteration}")


def _failed(arguments: argparse.Namespace) -> None:
    from ngsgd.training.lost_jobs import record_failure
    from ngsgd.training.run import Run

    run, x, n = Run.open(arguments.run), arguments.iteration, arguments.job
    if not record_failure(run, _job(run, x, n), arguments.reason, arguments.attempts_left, arguments.min_jobs or None):
        raise SystemExit(1)


def _end_iteration(arguments: argparse.Namespace) -> None:
    from ngsgd.network.storage import read_header
    from ngsgd.training.average import end_iteration
    from ngsgd.training.averaging_rules import make_averaging_rule
    from ngsgd.training.lost_jobs import jobs_after_losses, lost_jobs_in_history, record_lost_jobs
    from ngsgd.training.progress import Reporter
    from ngsgd.training.run import Run

    run, x = Run.open(arguments.run), arguments.iteration
    reporter = Reporter(run.progress(x, 0))
    jobs = jobs_after_losses(run.plan, x, lost_jobs_in_history(read_header(run.model(x))["history"]))
    outputs = [run.job(x, job.job) for job in jobs]
    lost = record_lost_jobs(jobs, outputs, run.ledger, arguments.min_jobs or None)
    models = [output for job, output in zip(jobs, outputs, strict=True) if job.job not in lost]
    gap = run.settings.max_log_probability_gap
    rule = make_averaging_rule(run.settings)
    momenta = (run.momentum(x), run.momentum(x + 1)) if rule.has_state else None
    end_iteration(models, run.model(x), gap, run.model(x + 1), run.report(x + 1), lost, rule, momenta)
    reporter.done()
    _prune(run, arguments, needed=[x + 1])


def _prune(run: Run, arguments: argparse.Namespace, needed: Sequence[int] = ()) -> None:
    from ngsgd.training.execution import ModelRetention
    from ngsgd.training.plan import read_plan
    from ngsgd.training.pruning import prune

    retention = ModelRetention(arguments.keep_last or None, arguments.keep_every or None)
    if not retention.all:
        prune(run, read_plan(run.plan), retention, needed)


def _diagnose(arguments: argparse.Namespace) -> None:
    from ngsgd.training.diagnose import diagnose
    from ngsgd.training.run import Run

    run = Run.open(arguments.run)
    diagnose(run, arguments.iteration)
    _prune(run, arguments)


def _status(arguments: argparse.Namespace) -> None:
    from ngsgd.reporting.status import describe, follow
    from ngsgd.training.run import Run

    run = Run.open(arguments.run)
    if arguments.follow:
        with contextlib.suppress(KeyboardInterrupt):
            follow(run)
    else:
        print(describe(run, time.time()))


def _align(arguments: argparse.Namespace) -> None:
    from ngsgd.training.realign import align
    from ngsgd.training.run import Run

    align(Run.open(arguments.run), arguments.alignment, arguments.split)


def _decode(arguments: argparse.Namespace) -> None:
    from ngsgd.training.decoding import decode
    from ngsgd.training.run import Run

    decode(Run.open(arguments.run), arguments.split)


def _convert(arguments: argparse.Namespace) -> None:
    from ngsgd.cli.models import load, save

    model = load(arguments.model)
    save(model, Path(arguments.output), arguments.model, arguments.transition_model, text=arguments.text)


def _info(arguments: argparse.Namespace) -> None:
    from ngsgd.cli.models import describe, load

    print(describe(load(arguments.model), arguments.model))


def _average(arguments: argparse.Namespace) -> None:
    from ngsgd.cli.models import average, save

    model = average(arguments.models)
    save(model, Path(arguments.output), arguments.models[0], arguments.transition_model, text=arguments.text)


def _export(arguments: argparse.Namespace) -> None:
    from ngsgd.cli.models import load
    from ngsgd.network.onnx import export_onnx

    export_onnx(load(arguments.model), arguments.onnx)


def _compute(arguments: argparse.Namespace) -> None:
    from ngsgd.cli.models import compute, load, read_features
    from ngsgd.data.kaldi_features import FeatureOptions, Features

    def path(value: str | None) -> Path | None:
        return None if value is None else Path(value)

    root = Path(arguments.experiment)
    options = FeatureOptions(
        root, arguments.cmvn_opts, arguments.feature_type, arguments.delta_order, arguments.allow_pipes
    )
    features = Features(
        path(arguments.cmvn),
        path(arguments.utt2spk),
        path(arguments.alignment),
        path(arguments.transforms),
        None,
        path(arguments.ivectors),
        options,
    )
    matrices = read_features(arguments.features, root, allow_pipes=arguments.allow_pipes)
    done = compute(load(arguments.model), matrices, features, Path(arguments.output))
    print(f"{done} utterances written", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="ngsgd", description="Parallel training of acoustic models with NG-SGD.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        subparser = commands.add_parser(name, help=text, description=text)
        subparser.set_defaults(function=function)
        return subparser

    status = command("status", _status, "Prints the state of a run: jobs, scores, speed and expected end.")
    status.add_argument("run", help="folder of the run")
    status.add_argument(
        "--follow", action="store_true", help="repeat every few seconds until the final model is written"
    )
    _add_run_commands(command)
    _add_model_commands(command)
    return top


def _add_run_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    def add_retention_options(subparser: argparse.ArgumentParser) -> None:
        subparser.add_argument(
            "--keep-last",
            type=int,
            default=0,
            metavar="N",
            help="keep the last N models and remove older ones; 0: see --keep-every",
        )
        subparser.add_argument(
            "--keep-every",
            type=int,
            default=0,
            metavar="N",
            help="keep every N-th model as well; if both are 0, all are kept",
        )

    train = command("train", _train, "Runs one training job of a run's plan.")
    train.add_argument("run", help="folder of the run")
    train.add_argument("iteration", type=int)
    train.add_argument("job", type=int)

    end = command(
        "end-iteration", _end_iteration, "Writes the next model: the average of an iteration's jobs, or the best one."
    )
    end.add_argument("run", help="folder of the run")
    end.add_argument("iteration", type=int)
    end.add_argument(
        "--min-jobs", type=int, default=0, metavar="N", help="accept an iteration with at least N finished jobs; 0: all"
    )
    add_retention_options(end)

    failed = command(
        "failed",
        _failed,
        "Records that a training job has failed; status 0 if the iteration can do without it, else 1.",
    )
    failed.add_argument("run", help="folder of the run")
    failed.add_argument("iteration", type=int)
    failed.add_argument("job", type=int)
    failed.add_argument("--reason", default="it failed, see its log")
    failed.add_argument("--attempts-left", type=int, default=0, metavar="N", help="number of retries that remain")
    failed.add_argument(
        "--min-jobs", type=int, default=0, metavar="N", help="minimum number of finished jobs of an iteration; 0: all"
    )

    diagnose = command("diagnose", _diagnose, "Scores a model of a run on the validation and training subsets.")
    diagnose.add_argument("run", help="folder of the run")
    diagnose.add_argument("iteration", type=int, help="iteration that starts from the model")
    add_retention_options(diagnose)

    align = command("align", _align, "Realigns one split of a run's training and validation utterances.")
    align.add_argument("run", help="folder of the run")
    align.add_argument("alignment", type=int, help="number of the realignment, from 1")
    align.add_argument("split", type=int)

    decode = command("decode", _decode, "Decodes one split of a run's validation and test utterances to words.")
    decode.add_argument("run", help="folder of the run")
    decode.add_argument("split", type=int)


def _add_model_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    model_help = "a model: .safetensors, or Kaldi's nnet2 (.mdl), binary or text"

    def add_output_options(subparser: argparse.ArgumentParser) -> None:
        subparser.add_argument("output", help="file to be written: .safetensors, or .mdl for nnet2")
        subparser.add_argument("--text", action="store_true", help="write .mdl in text format")
        subparser.add_argument(
            "--transition-model", metavar="MDL", help="Kaldi model whose transition model is written into .mdl"
        )

    convert = command("convert", _convert, "Converts a model to Kaldi's nnet2 format, or back.")
    convert.add_argument("model", help=model_help)
    add_output_options(convert)

    info = command("info", _info, "Prints the components and the history of a model.")
    info.add_argument("model", help=model_help)

    average = command("average", _average, "Averages the parameters of models.")
    average.add_argument("models", nargs="+", help=model_help)
    add_output_options(average)

    export = command("export", _export, "Writes a model as ONNX: features in, log-likelihoods out.")
    export.add_argument("model", help=model_help)
    export.add_argument("--onnx", required=True, metavar="OUT", help="file to be written")

    compute = command("compute", _compute, "Writes log-likelihoods of utterances for Kaldi's decoders.")
    compute.add_argument("model", help=model_help)
    compute.add_argument(
        "features",
        help=".scp file or archive; without options, features in the form that the network takes",
    )
    compute.add_argument("output", help="Kaldi archive to be written")
    compute.add_argument("--cmvn", metavar="SCP", help="CMVN statistics by speaker")
    compute.add_argument(
        "--utt2spk", metavar="FILE", help="speaker of each utterance; default: one speaker per utterance"
    )
    compute.add_argument("--cmvn-opts", metavar="OPTS", help="CMVN options, such as '--norm-vars=true'")
    compute.add_argument(
        "--delta-order", type=int, default=0, metavar="N", help="order of time derivatives to be appended"
    )
    compute.add_argument(
        "--feature-type", choices=("raw", "lda"), help="lda: splice, then apply final.mat of --alignment"
    )
    compute.add_argument(
        "--alignment", metavar="DIR", help="folder with final.mat, splice_opts and cmvn_opts, as far as they exist"
    )
    compute.add_argument("--transforms", metavar="DIR", help="folder with trans.* (fMLLR transforms)")
    compute.add_argument("--ivectors", metavar="DIR", help="folder with ivector_online.scp and ivector_period")
    compute.add_argument("--experiment", default=".", metavar="DIR", help="folder that paths in .scp are relative to")
    compute.add_argument("--allow-pipes", action="store_true", help="run commands (pipes) in .scp files")


def run_command(argv: Sequence[str] | None = None) -> None:
    """Parses the arguments and runs the subcommand in this process."""
    arguments = parser().parse_args(argv)
    with entry_point():
        arguments.function(arguments)
