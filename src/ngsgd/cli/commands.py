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

    job = _job(arguments)
    # A job that makes up for a lost one trains on another archive than the plan has for it.
    name = f"{job.archive}.npy"
    archive = arguments.archive.with_name(name)
    labels = arguments.labels[0].with_name(name) if arguments.labels else None
    settings = Run.read(arguments.settings).settings
    run_job(settings, job, arguments.model, archive, arguments.output, arguments.progress, labels)


def _job(arguments: argparse.Namespace) -> Job:
    """Returns a job of the plan, adjusted for jobs that were lost before it.

    Raises:
        DataError: the iteration has no such job.
    """
    from ngsgd.errors import DataError

    for job in _jobs(arguments.plan, arguments.iteration, arguments.model):
        if job.job == arguments.job:
            return job
    raise DataError(f"{arguments.plan}: no job {arguments.job} in iteration {arguments.iteration}")


def _jobs(plan: Path, iteration: int, model: Path) -> list[Job]:
    """Returns an iteration's jobs, adjusted for those lost in the history of the model that they start from."""
    from ngsgd.network.storage import read_header
    from ngsgd.training.lost_jobs import jobs_after_losses, lost_jobs_in_history

    return jobs_after_losses(plan, iteration, lost_jobs_in_history(read_header(model)["history"]))


def _failed(arguments: argparse.Namespace) -> None:
    from ngsgd.training.lost_jobs import record_failure

    can_do_without = record_failure(
        _job(arguments),
        arguments.plan,
        arguments.output,
        arguments.progress,
        arguments.reason,
        arguments.attempts_left,
        arguments.min_jobs or None,
    )
    if not can_do_without:
        raise SystemExit(1)


def _end_iteration(arguments: argparse.Namespace) -> None:
    from ngsgd.training.average import end_iteration
    from ngsgd.training.averaging_rules import make_averaging_rule
    from ngsgd.training.lost_jobs import record_lost_jobs
    from ngsgd.training.progress import Reporter
    from ngsgd.training.run import Run

    run, x = Run.read(arguments.settings), arguments.iteration
    reporter = Reporter(arguments.progress)
    jobs = _jobs(arguments.plan, x, arguments.previous)
    outputs = {int(path.stem.removeprefix(f"{x}.")): path for path in arguments.jobs}
    lost = record_lost_jobs(jobs, outputs, arguments.lost_jobs, arguments.min_jobs or None)
    models = [outputs[job.job] for job in jobs if job.job not in lost]
    rule = make_averaging_rule(run.settings)
    end_iteration(
        models,
        arguments.previous,
        run.settings.max_log_probability_gap,
        arguments.output,
        arguments.report,
        lost,
        rule,
        tuple(arguments.momenta) if rule.has_state else None,
    )
    reporter.done()
    _prune(run, arguments, needed=[x + 1])


def _prune(run: Run, arguments: argparse.Namespace, needed: Sequence[int] = ()) -> None:
    from ngsgd.training.call_settings import ModelRetention
    from ngsgd.training.plan import read_plan
    from ngsgd.training.pruning import prune

    retention = ModelRetention(arguments.keep_last or None, arguments.keep_every or None)
    if not retention.all:
        prune(run, read_plan(arguments.plan), retention, needed)


def _diagnose(arguments: argparse.Namespace) -> None:
    from ngsgd.training.diagnose import diagnose
    from ngsgd.training.run import Run

    run = Run.read(arguments.settings)
    valid, train = arguments.examples
    valid_labels, train_labels = arguments.labels or (None, None)
    diagnose(run.settings, arguments.model, (valid, valid_labels), (train, train_labels), arguments.output)
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

    settings = Run.read(arguments.settings).settings
    outputs = {"train": arguments.train, "valid": arguments.valid}
    align(settings, arguments.model, arguments.corpus.parent, arguments.split, outputs)


def _decode(arguments: argparse.Namespace) -> None:
    from ngsgd.training.decoding import decode
    from ngsgd.training.run import Run

    settings = Run.read(arguments.settings).settings
    decode(settings, arguments.model, arguments.graph, arguments.corpus.parent, arguments.split, arguments.output)


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
    from ngsgd.errors import DataError
    from ngsgd.kaldi.specifiers import Rspecifier, Wspecifier
    from ngsgd.kaldi.tables import Locations

    def path(value: str | None) -> Path | None:
        return None if value is None else Path(value)

    if arguments.alignment and not Path(arguments.alignment).is_dir():
        raise DataError(f"--alignment {arguments.alignment}: no such folder")
    locations = Locations(Path(arguments.experiment), dict(arguments.path_map), arguments.allow_pipes)
    options = FeatureOptions(locations, arguments.cmvn_opts, arguments.feature_type, arguments.delta_order)
    features = Features(
        path(arguments.cmvn),
        path(arguments.utt2spk),
        path(arguments.alignment),
        path(arguments.transforms),
        None,
        path(arguments.ivectors),
        options,
    )
    matrices = read_features(Rspecifier.parse(arguments.features), locations)
    done = compute(load(arguments.model), matrices, features, Wspecifier.parse(arguments.output))
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

    def add_path(subparser: argparse.ArgumentParser, name: str, text: str, nargs: int | str | None = None) -> None:
        subparser.add_argument(
            f"--{name}", type=Path, required=nargs is None, nargs=nargs, default=[], metavar="PATH", help=text
        )

    def add_settings(subparser: argparse.ArgumentParser) -> None:
        add_path(subparser, "settings", "settings.json of the run")

    def add_plan(subparser: argparse.ArgumentParser) -> None:
        add_path(subparser, "plan", "plan.tsv of the run")

    def add_job(subparser: argparse.ArgumentParser) -> None:
        subparser.add_argument("iteration", type=int)
        subparser.add_argument("job", type=int)
        add_plan(subparser)
        add_path(subparser, "model", "model that the job starts from")
        add_path(subparser, "output", "model to be written")
        add_path(subparser, "progress", "progress file of the job")

    train = command("train", _train, "Runs one training job of a run's plan.")
    add_job(train)
    add_settings(train)
    add_path(train, "archive", "archive of examples of the job; other archives are next to it")
    add_path(train, "labels", "new labels of the archive, after a realignment; those of others are next to them", "*")

    failed = command(
        "failed",
        _failed,
        "Records that a training job has failed; status 0 if the iteration can do without it, else 1.",
    )
    add_job(failed)
    failed.add_argument("--reason", default="it failed, see its log")
    failed.add_argument("--attempts-left", type=int, default=0, metavar="N", help="number of retries that remain")
    failed.add_argument(
        "--min-jobs", type=int, default=0, metavar="N", help="minimum number of finished jobs of an iteration; 0: all"
    )

    end = command(
        "end-iteration", _end_iteration, "Writes the next model: the average of an iteration's jobs, or the best one."
    )
    end.add_argument("iteration", type=int)
    add_settings(end)
    add_plan(end)
    add_path(end, "jobs", "models of the iteration's jobs, named ITERATION.JOB.safetensors", "*")
    add_path(end, "previous", "model that the jobs started from")
    add_path(end, "momenta", "momentum of the outer step before and after the iteration", "*")
    add_path(end, "output", "model to be written")
    add_path(end, "report", "report to be written (JSON)")
    add_path(end, "lost-jobs", "ledger of the run's lost jobs")
    add_path(end, "progress", "progress file of the averaging")
    end.add_argument(
        "--min-jobs", type=int, default=0, metavar="N", help="accept an iteration with at least N finished jobs; 0: all"
    )
    add_retention_options(end)

    diagnose = command("diagnose", _diagnose, "Scores a model of a run on the validation and training subsets.")
    add_settings(diagnose)
    add_plan(diagnose)
    add_path(diagnose, "model", "model to be scored")
    add_path(diagnose, "examples", "validation frames and training frames", 2)
    add_path(diagnose, "labels", "their new labels, after a realignment", "*")
    add_path(diagnose, "output", "scores to be written (JSON)")
    add_retention_options(diagnose)

    align = command("align", _align, "Realigns one split of a run's training and validation utterances.")
    align.add_argument("split", type=int)
    add_settings(align)
    add_path(align, "model", "model with priors")
    add_path(align, "corpus", "corpus.json of the prepared corpus")
    add_path(align, "train", "labels of the training utterances to be written")
    add_path(align, "valid", "labels of the validation utterances to be written")

    decode = command("decode", _decode, "Decodes one split of a run's validation and test utterances to words.")
    decode.add_argument("split", type=int)
    add_settings(decode)
    add_path(decode, "model", "final model")
    add_path(decode, "graph", "decoding graph with pdf-ids")
    add_path(decode, "corpus", "corpus.json of the prepared corpus")
    add_path(decode, "output", "words to be written (JSON)")


def _replacement(text: str) -> tuple[str, str]:
    old, separator, new = text.partition("=")
    if not separator or not old:
        raise argparse.ArgumentTypeError(f"{text!r} is not OLD=NEW")
    return old, new


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
        help="rspecifier such as scp:feats.scp or ark:-, or a file; without options, features in the form that the "
        "network takes",
    )
    compute.add_argument("output", help="wspecifier such as ark:-, ark,t:out.txt or ark,scp:out.ark,out.scp, or a file")
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
    compute.add_argument(
        "--path-map",
        type=_replacement,
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="replace the start of paths in .scp files; can be given several times",
    )
    compute.add_argument("--allow-pipes", action="store_true", help="run commands (pipes) in .scp files")


def run_command(argv: Sequence[str] | None = None) -> None:
    """Parses the arguments and runs the subcommand in this process."""
    arguments = parser().parse_args(argv)
    with entry_point():
        arguments.function(arguments)
