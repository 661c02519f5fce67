"""Which models are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from ngsgd.data.egs import Layout
from ngsgd.training.execution import ModelRetention
from ngsgd.training.plan import Job, make_plan
from ngsgd.training.pruning import prune
from ngsgd.training.run import Run

LAYOUT = Layout(5, 8)


class Planned(Run):
    """A run whose examples are only said to be."""

    def layout(self) -> Layout:
        return LAYOUT


@pytest.fixture
def run(make_settings, tmp_path: Path) -> Run:
    settings = make_settings(num_jobs_initial=2, num_jobs_final=2, max_models_combine=3)
    return Planned(tmp_path, settings, Path("data"), Path("egs"))


@pytest.fixture
def plan(run: Run) -> list[Job]:
    return make_plan(LAYOUT, run.settings)  # of 80 iterations, the last 20 models are combined


def make(run: Run, models: int, scored: int) -> None:
    """The files of a run up to a model, all with that of the jobs before it."""
    for x in range(models + 1):
        for path in [run.model(x), run.job(x, 1), run.job(x, 2)]:
            path.parent.mkdir(exist_ok=True)
            path.touch()
        if x < scored:
            run.diagnostics(x).parent.mkdir(exist_ok=True)
            run.diagnostics(x).touch()


def kept(run: Run) -> list[int]:
    return sorted(int(path.stem) for path in run.model(0).parent.iterdir())


@pytest.mark.parametrize(
    ("keeping", "expected"),
    [
        (ModelRetention(), [*range(11)]),
        (ModelRetention(last=3), [7, 8, 9, 10]),
        (ModelRetention(every=4), [0, 4, 7, 8, 9, 10]),
        (ModelRetention(last=5, every=4), [0, 4, 6, 7, 8, 9, 10]),
    ],
)
def test_what_is_kept_while_the_run_goes_on(
    run: Run, plan: list[Job], keeping: ModelRetention, expected: list[int]
) -> None:
    make(run, models=10, scored=7)  # 7, 8, 9 and 10 have not been scored yet
    prune(run, plan, keeping)
    assert kept(run) == expected
    jobs = {int(path.name.split(".")[0]) for path in run.job(0, 1).parent.iterdir()}
    assert jobs == (set(range(11)) if keeping.all else {10})  # those that have not been averaged yet


def test_what_is_still_needed_stays(run: Run, plan: list[Job]) -> None:
    make(run, models=80, scored=81)
    prune(run, plan, ModelRetention(last=1), needed=[5])
    assert kept(run) == [5, *range(61, 81)]  # of which the final model is to be made
    run.final.touch()
    prune(run, plan, ModelRetention(last=1))
    assert kept(run) == [5, 80]
    prune(run, plan, ModelRetention(last=1), idle=True)
    assert kept(run) == [80]


def test_a_model_without_its_successor_stays(run: Run, plan: list[Job]) -> None:
    """Where models are made again, the chain from the nearest one that was kept must not break."""
    make(run, models=80, scored=81)
    run.final.touch()
    for x in range(31, 60):
        run.model(x).unlink()
    prune(run, plan, ModelRetention(every=60))
    assert kept(run) == [0, 30, 60, 80]


def test_a_model_that_is_to_align_stays(make_settings, tmp_path: Path) -> None:
    settings = make_settings(num_jobs_initial=2, num_jobs_final=2, max_models_combine=3, realign_times=[0.1])
    run = Planned(tmp_path, settings, Path("data"), Path("egs"))
    plan = make_plan(LAYOUT, settings)
    make(run, models=20, scored=21)
    prune(run, plan, ModelRetention(last=2))
    assert kept(run) == [8, 19, 20]
    run.alignment_model(1).parent.mkdir(parents=True)
    run.alignment_model(1).touch()
    prune(run, plan, ModelRetention(last=2), idle=True)
    assert kept(run) == [19, 20]
