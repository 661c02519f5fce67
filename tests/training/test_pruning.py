"""Tests of pruning: which models are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from ngsgd.data.egs import Layout
from ngsgd.training.call_settings import ModelRetention
from ngsgd.training.plan import Job, make_plan
from ngsgd.training.pruning import prune
from ngsgd.training.run import Run

LAYOUT = Layout(5, 8)


class RunWithoutExamples(Run):
    """Run with a fixed layout of its examples, which need not exist."""

    def layout(self) -> Layout:
        return LAYOUT


@pytest.fixture
def run(make_settings, tmp_path: Path) -> Run:
    settings = make_settings(num_jobs_initial=2, num_jobs_final=2, max_models_combine=3)
    return RunWithoutExamples(tmp_path, settings, Path("data"), Path("egs"))


@pytest.fixture
def plan(run: Run) -> list[Job]:
    return make_plan(LAYOUT, run.settings)  # 80 iterations; the last 20 models are combined


def write_models(run: Run, models: int, scored: int) -> None:
    """Creates empty models 0 to `models`, two job models for each, and diagnostics of the first `scored` models."""
    for x in range(models + 1):
        for path in [run.model_file(x), run.job_file(x, 1), run.job_file(x, 2)]:
            path.parent.mkdir(exist_ok=True)
            path.touch()
        if x < scored:
            run.diagnostics_file(x).parent.mkdir(exist_ok=True)
            run.diagnostics_file(x).touch()


def kept(run: Run) -> list[int]:
    return sorted(int(path.stem) for path in run.model_file(0).parent.iterdir())


@pytest.mark.parametrize(
    ("retention", "expected"),
    [
        (ModelRetention(), [*range(11)]),
        (ModelRetention(last=3), [7, 8, 9, 10]),
        (ModelRetention(every=4), [0, 4, 7, 8, 9, 10]),
        (ModelRetention(last=5, every=4), [0, 4, 6, 7, 8, 9, 10]),
    ],
)
def test_models_kept_during_a_run(run: Run, plan: list[Job], retention: ModelRetention, expected: list[int]) -> None:
    write_models(run, models=10, scored=7)  # models 7 to 10 have not been scored yet
    prune(run, plan, retention)
    assert kept(run) == expected
    jobs = {int(path.name.split(".")[0]) for path in run.job_file(0, 1).parent.iterdir()}
    assert jobs == (set(range(11)) if retention.all else {10})  # jobs that have not been averaged yet


def test_needed_models_are_kept(run: Run, plan: list[Job]) -> None:
    write_models(run, models=80, scored=81)
    prune(run, plan, ModelRetention(last=1), needed=[5])
    assert kept(run) == [5, *range(61, 81)]  # the final model is combined from these
    run.final_model_file.touch()
    prune(run, plan, ModelRetention(last=1))
    assert kept(run) == [5, 80]
    prune(run, plan, ModelRetention(last=1), idle=True)
    assert kept(run) == [80]


def test_model_without_its_successor_is_kept(run: Run, plan: list[Job]) -> None:
    """Missing models are made again from the nearest earlier one, so the chain after a kept model must not break."""
    write_models(run, models=80, scored=81)
    run.final_model_file.touch()
    for x in range(31, 60):
        run.model_file(x).unlink()
    prune(run, plan, ModelRetention(every=60))
    assert kept(run) == [0, 30, 60, 80]


def test_model_for_a_coming_realignment_is_kept(make_settings, tmp_path: Path) -> None:
    settings = make_settings(num_jobs_initial=2, num_jobs_final=2, max_models_combine=3, realign_times=[0.1])
    run = RunWithoutExamples(tmp_path, settings, Path("data"), Path("egs"))
    plan = make_plan(LAYOUT, settings)
    write_models(run, models=20, scored=21)
    prune(run, plan, ModelRetention(last=2))
    assert kept(run) == [8, 19, 20]
    run.alignment_model_file(1).parent.mkdir(parents=True)
    run.alignment_model_file(1).touch()
    prune(run, plan, ModelRetention(last=2), idle=True)
    assert kept(run) == [19, 20]


def test_files_of_other_names_are_left_alone(run: Run, plan: list[Job]) -> None:
    """People make copies such as ``models/4.best.safetensors``."""
    write_models(run, models=10, scored=11)
    others = [
        run.model_file(0).parent / name for name in ("4.best.safetensors", "4 (copy).safetensors", "٤.safetensors")
    ]
    others += [run.job_file(0, 1).parent / "3.1.old.safetensors", run.momentum_file(0).parent / "x.safetensors"]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    prune(run, plan, ModelRetention(last=2), idle=True)
    assert run.existing_models() == {9, 10}
    assert all(path.exists() for path in others)
