"""The functions of ``ngsgd.workflow`` by themselves, with a stand-in for Snakemake's objects that they get as
arguments.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from ngsgd.data.egs import Layout
from ngsgd.errors import ConfigError, NgsgdError
from ngsgd.training.call_settings import CallSettings
from ngsgd.training.lost_jobs import jobs_after_losses, read_lost_jobs, record_lost_jobs
from ngsgd.training.recipe import Recipe
from ngsgd.workflow.configuration import run_settings
from ngsgd.workflow.inputs import Inputs, Step
from ngsgd.workflow.job_policy import TrainingJobPolicy
from ngsgd.workflow.lifecycle import report_errors
from ngsgd.workflow.plans import Plans
from ngsgd.workflow.runs import make_runs, recipe_path
from ngsgd.workflow.snakemake_call import SnakemakeCall

ROOT = Path(__file__).resolve().parents[2]


class Wildcards(dict[str, str]):
    """The values of a rule's wildcards, by key and as attributes."""

    __getattr__ = dict.__getitem__


def make_call(**dag_settings: Any) -> SnakemakeCall:
    given = {"forceall": False, "forcetargets": False, "forcerun": frozenset()} | dag_settings
    rules = {
        "asr_train": SimpleNamespace(is_producer=lambda path: "/jobs/" in path),
        "asr_average": SimpleNamespace(is_producer=lambda path: "/models/" in path and "/0." not in path),
    }
    workflow = SimpleNamespace(
        dag_settings=SimpleNamespace(**given),
        dag=SimpleNamespace(forcefiles=set(), targetfiles=set()),
        is_rule=rules.__contains__,
        get_rule=rules.__getitem__,
    )
    return SnakemakeCall(workflow, "9.1.2", ValueError)


def make_inputs(config: dict[str, Any], **dag_settings: Any) -> Inputs:
    """The inputs of runs whose recipes are active in the working directory."""
    settings = run_settings(config)
    runs, call = make_runs(settings), make_call(**dag_settings)
    for run in runs.values():
        Recipe(run, Layout(4, 8)).write(Path(recipe_path(run)))
    plans = Plans(runs, call, lambda path, **wildcards: None)
    return Inputs(runs, plans, call, CallSettings.from_config(config), {}, {})


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    return yaml.safe_load((ROOT / "config/config.yaml").read_text()) | {"runs": {"r": {}}}


def train_step(inputs: Inputs) -> Step:
    """The step of the rule `train`, in short."""
    return inputs.step(
        reads={
            "settings": "results/{run}/settings.json",
            "plan": "results/{run}/plan.tsv",
            "model": "results/{run}/models/{iteration}.safetensors",
            "archive": inputs.archive,
        },
        writes={"model": "results/{run}/jobs/{iteration}.{job}.safetensors"},
        updates={"progress": "results/{run}/progress/{iteration}.{job}.json"},
    )


def touch(*paths: str) -> None:
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()


JOB = Wildcards({"run": "r", "iteration": "2", "job": "1"})


def test_another_version_of_snakemake_is_refused() -> None:
    with pytest.raises(NgsgdError, match=r"needs Snakemake 9; install it by `pip install 'snakemake==9\.\*'`"):
        SnakemakeCall(SimpleNamespace(), "10.0.0", ValueError)


def test_a_missing_output_asks_for_the_inputs_that_are_missing(config: dict[str, Any]) -> None:
    inputs = make_inputs(config)
    run = inputs.runs["r"]
    job = inputs.plans.job(JOB)
    reads = [run.settings_file, run.plan_file, run.model_file(2), run.archive_file(job.archive)]
    assert train_step(inputs).missing(JOB) == [str(path) for path in reads]
    touch(str(run.model_file(2)), str(run.archive_file(job.archive)))
    assert train_step(inputs).missing(JOB) == [str(path) for path in reads[:2]]


def test_an_existing_output_asks_for_nothing_unless_forced(config: dict[str, Any]) -> None:
    output = "results/r/jobs/2.1.safetensors"
    touch(output)
    assert train_step(make_inputs(config)).missing(JOB) == []
    everything = train_step(make_inputs(config, forceall=True)).missing(JOB)
    assert len(everything) == 4
    for forced in ({"forcetargets": True}, {"forcerun": frozenset({output})}, {"forcerun": frozenset({"asr_train"})}):
        assert train_step(make_inputs(config, **forced)).missing(JOB) == everything
    touch(*everything[2:])
    assert train_step(make_inputs(config, forcetargets=True)).missing(JOB) == everything[:2]
    # A step of training that is forced makes all of them again.
    assert train_step(make_inputs(config, forcerun=frozenset({"asr_average"}))).missing(JOB) == everything
    assert train_step(make_inputs(config, forcerun=frozenset({everything[2]}))).missing(JOB) == []  # the output exists


def test_a_command_gets_every_path_of_its_step(config: dict[str, Any]) -> None:
    inputs = make_inputs(config)
    params = {name: function(JOB, []) for name, function in train_step(inputs).params.items()}
    assert params == {
        "settings": "results/r/settings.json",
        "plan": "results/r/plan.tsv",
        "model": "results/r/models/2.safetensors",
        "archive": str(inputs.runs["r"].archive_file(inputs.plans.job(JOB).archive)),
        "progress": "results/r/progress/2.1.json",
    }


def test_a_new_final_model_is_used_again(config: dict[str, Any]) -> None:
    inputs = make_inputs(config)
    final, output, settings = (f"results/r/{name}" for name in ("final.safetensors", "out.json", "settings.json"))
    step = inputs.step({"settings": settings, "model": final}, {"out": output}, follows_final=True)
    touch(output, final)
    for age, expected in ((-5, [final]), (5, [settings, final])):
        os.utime(final, ns=(0, os.stat(output).st_mtime_ns + age * 10**9))
        assert step.missing(JOB) == expected


def test_jobs_that_the_plan_does_not_have_are_errors(config: dict[str, Any]) -> None:
    inputs = make_inputs(config)
    num_iters = inputs.plans.num_iterations("r")
    with pytest.raises(ValueError, match=rf"r: its plan has {num_iters} iterations, there is no {num_iters}"):
        train_step(inputs).missing(Wildcards({"run": "r", "iteration": str(num_iters), "job": "1"}))
    with pytest.raises(ValueError, match="no job 9 in iteration 2"):
        train_step(inputs).missing(Wildcards({"run": "r", "iteration": "2", "job": "9"}))


def test_a_plan_of_other_settings_is_an_error(config: dict[str, Any]) -> None:
    inputs = make_inputs(config)
    run = inputs.runs["r"]
    run.plan_file.parent.mkdir(parents=True, exist_ok=True)
    rows = [job for jobs in inputs.plans.plan_for("r") for job in jobs][:-1]
    run.plan_file.write_text("\n".join("\t".join(map(str, row)) for row in [rows[0]._fields, *rows]) + "\n")
    with pytest.raises(ValueError, match=r"plan\.tsv is not the plan of the run's settings"):
        train_step(make_inputs(config)).missing(JOB)


def test_runs_come_after_the_run_whose_model_they_start_from(config: dict[str, Any]) -> None:
    start = "results/a/final.safetensors"
    settings = run_settings(config | {"runs": {"b": {"initial_model": start}, "a": {}}})
    runs = make_runs(settings)
    assert list(runs) == ["a", "b"]
    assert runs["b"].origin == f"{start} {runs['a'].models_key()}"
    circular = {"b": {"initial_model": start}, "a": {"initial_model": "results/b/final.safetensors"}}
    with pytest.raises(ConfigError, match="is made from the run itself"):
        make_runs(run_settings(config | {"runs": circular}))
    with pytest.raises(ConfigError, match=r"nowhere\.mdl: no such file"):
        make_runs(run_settings(config | {"runs": {"a": {"initial_model": "nowhere.mdl"}}}))


def test_each_error_is_reported_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs = [tmp_path / f"{n}.log" for n in range(4)]
    logs[0].write_text("error: the disk is full\n")
    logs[1].write_text("a warning\nerror: the disk is full\n")
    logs[2].write_text("nothing to the point\n")
    snakemake_log = tmp_path / "snakemake.log"
    snakemake_log.write_text("".join(f"    log: {log.name} (check log file(s) for error details)\n" for log in logs))
    report_errors(snakemake_log, tmp_path, {logs[3].name: "it was cancelled"})
    assert capsys.readouterr().err.splitlines() == [
        "error: the disk is full",
        f"error: a job was killed, or crashed: its log is {logs[2].name}",
        f"error: it was cancelled: its log is {logs[3].name}",
    ]


def test_jobs_of_successive_iterations_can_be_lost_in_one_call(config: dict[str, Any]) -> None:
    """The second one was to train on what the first one lost."""
    inputs = make_inputs(config | {"min_jobs": 1, "num_jobs_initial": 2})
    run, plans = inputs.runs["r"], inputs.plans
    rows = [job for jobs in plans.plan_for("r") for job in jobs]
    run.plan_file.parent.mkdir(parents=True, exist_ok=True)
    run.plan_file.write_text("\n".join("\t".join(map(str, row)) for row in [rows[0]._fields, *rows]) + "\n")
    policy = TrainingJobPolicy(inputs.runs, plans, inputs.execution)
    for x, job in ((1, 2), (2, 1)):
        named = Wildcards({"run": "r", "iteration": str(x), "job": str(job)})
        output = [run.job_file(x, job)]
        failed = SimpleNamespace(is_group=lambda: False, output=output, log=["log"], wildcards=named)
        assert policy.on_failure(failed, "it was cancelled", attempts_left=0)
        lost = {(lost.iteration, lost.job) for lost in read_lost_jobs(run.lost_jobs_file)}
        row = next(row for row in jobs_after_losses(run.plan_file, x, lost) if row.job == job)
        record_lost_jobs([row], {job: run.job_file(x, job)}, run.lost_jobs_file, 0)
    assert [(lost.iteration, lost.job) for lost in read_lost_jobs(run.lost_jobs_file)] == [(1, 2), (2, 1)]
    assert policy.failure_reasons == {"log": "it was cancelled"}
    # A rule of another workflow may have the same wildcards.
    other = SimpleNamespace(is_group=lambda: False, output=["other"], log=[], wildcards=named)
    assert not policy.on_failure(other, "it was cancelled", attempts_left=0)
