from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest

from ngsgd.data.egs import Layout
from ngsgd.errors import ConfigError, DataError
from ngsgd.training.lrate_schedules import SCHEDULES
from ngsgd.training.plan import AVERAGE, BEST, INSERT, Job, iteration_jobs, make_plan, models_to_combine, read_plan


@pytest.fixture
def reference(make_settings):
    """Returns the settings of the reference run on fsdd."""
    return make_settings(
        num_epochs=8, initial_effective_lrate=0.02, final_effective_lrate=0.002, num_jobs_initial=1, num_jobs_final=4,
        num_hidden_layers=3, minibatch_size=128, samples_per_iter=20_000, frames_per_eg=8,
    )  # fmt: skip


def test_plan_is_that_of_the_reference_run(kaldi: Path, reference) -> None:
    """Compares jobs, learning rates, minibatch sizes, frames and archives with Kaldi's log."""
    plan = make_plan(Layout.for_frames(118_305, 8, 20_000), reference)
    with open(kaldi / "fsdd/exp/nnet/metrics.tsv", newline="") as f:
        rows = list(csv.DictReader(f, delimiter="\t"))
    assert plan[-1].iteration + 1 == len(rows) == 19
    for row in rows:
        jobs = [job for job in plan if job.iteration == int(row["iteration"])]
        assert len(jobs) == int(row["jobs"])
        assert {job.minibatch_size for job in jobs} == {int(row["minibatch_size"])}
        assert [f"{job.frame}@{job.archive + 1}" for job in jobs] == row["frame@archive"].split(",")
        for job in jobs:
            assert job.learning_rate == pytest.approx(float(row["learning_rate"]), rel=1e-12)


def test_first_and_last_lines_of_the_reference_plan(reference) -> None:
    plan = make_plan(Layout(1, 6), reference)
    assert [(j.iteration, j.job, j.archive, j.frame) for j in plan[:6]] == [
        (0, 1, 0, 0), (1, 1, 0, 1), (2, 1, 0, 2), (3, 1, 0, 3), (4, 1, 0, 4), (4, 2, 0, 5),
    ]  # fmt: skip
    assert [plan[i].minibatch_size for i in (0, 1, 2, 3, 4)] == [64, 128, 64, 128, 64]
    assert [plan[i].action for i in (0, 1, 2, 3, 4, 6)] == [BEST, AVERAGE, INSERT, AVERAGE, INSERT, AVERAGE]
    assert plan[-1].learning_rate == pytest.approx(4 * 0.002)
    assert plan[6].learning_rate == pytest.approx(0.0299957683732982)


def test_every_expanded_archive_is_used_once_per_epoch(make_settings) -> None:
    layout = Layout(5, 8)
    plan = make_plan(layout, make_settings(num_epochs=10))
    for epoch in range(5):
        seen = {(j.archive, j.frame) for j in plan[40 * epoch : 40 * (epoch + 1)]}
        assert len(seen) == 40
    assert len({j.seed for j in plan}) == len(plan)
    other = make_plan(layout, make_settings(num_epochs=10, seed=1))
    assert [j._replace(seed=0) for j in other] == [j._replace(seed=0) for j in plan]
    assert {j.seed for j in plan}.isdisjoint(j.seed for j in other)


def test_extra_epochs_continue_the_plan(make_settings) -> None:
    layout = Layout(3, 8)
    plan = make_plan(layout, make_settings(num_epochs=6))
    longer = make_plan(layout, make_settings(num_epochs=6, extra_epochs=2))
    assert longer[: len(plan)] == plan
    extra = longer[len(plan) :]
    assert len(extra) == 2 * 24
    assert {(j.archive, j.frame) for j in extra} == {(a, f) for a in range(3) for f in range(8)}
    assert (extra[0].archive, extra[0].frame) == (len(plan) % 3, len(plan) // 3 % 8)
    assert {(j.learning_rate, j.action, j.minibatch_size) for j in extra} == {(4 * 0.002, AVERAGE, 128)}
    assert [j.iteration for j in extra[:5]] == [plan[-1].iteration + 1] * 4 + [plan[-1].iteration + 2]
    assert len({j.seed for j in longer}) == len(longer)


def test_run_with_an_initial_model_inserts_no_layers_and_always_averages(make_settings) -> None:
    plan = make_plan(Layout(3, 8), make_settings(initial_model="other.safetensors"))
    assert {(job.action, job.minibatch_size) for job in plan} == {(AVERAGE, 128)}


def test_settings_without_a_possible_plan_are_refused(make_settings) -> None:
    with pytest.raises(ConfigError, match="num_jobs_final = 9 jobs, but only 8 expanded archives"):
        make_plan(Layout(1, 8), make_settings(num_jobs_final=9))
    with pytest.raises(ConfigError, match="3 iterations are too few to insert 3 hidden layers"):
        make_plan(Layout(1, 8), make_settings(num_epochs=1))
    with pytest.raises(ConfigError, match="not a single iteration"):
        make_plan(Layout(1, 8), make_settings(num_epochs=0.1, num_hidden_layers=1, splice_indexes="layer0/0"))


def test_plan_is_read_as_written(make_settings, tmp_path: Path) -> None:
    path = tmp_path / "plan.tsv"
    plan = make_plan(Layout(2, 8), make_settings())
    path.write_text("\n".join("\t".join(map(str, row)) for row in [Job._fields, *plan]) + "\n")
    assert read_plan(path) == plan
    assert iteration_jobs(path, 7) == [job for job in plan if job.iteration == 7]
    with pytest.raises(DataError, match="no iteration 99"):
        iteration_jobs(path, 99)
    path.write_text("iteration\tjob\n1\t2\n")
    with pytest.raises(DataError, match=r"plan\.tsv: not a plan"):
        read_plan(path)


@pytest.mark.parametrize(
    ("epochs", "first", "count"),
    [(8, 16, 4), (3, 7, 1), (40, 75, 22)],  # two thirds of the second half, but at least one model
)
def test_models_to_combine(reference, make_settings, epochs: int, first: int, count: int) -> None:
    settings = make_settings(**{**reference.values(), "num_epochs": epochs, "max_models_combine": 100})
    layout = Layout(1, 6)
    plan = make_plan(layout, settings)
    models = models_to_combine(plan, layout, settings)
    assert models[-1] == plan[-1].iteration + 1
    assert (models[0], len(models)) == (first, count)
    at_most_5 = make_settings(**{**reference.values(), "num_epochs": epochs, "max_models_combine": 5})
    assert len(models_to_combine(plan, layout, at_most_5)) == min(5, count)


def test_models_without_all_their_layers_are_not_combined(make_settings) -> None:
    settings = make_settings(num_epochs=4, num_hidden_layers=3, add_layers_period=11)
    layout = Layout(2, 8)
    plan = make_plan(layout, settings)
    last_insertion = max(j.iteration for j in plan if j.action == INSERT)
    assert last_insertion == 22
    assert models_to_combine(plan, layout, settings)[0] > last_insertion


def test_realignments(reference) -> None:
    """Labels are realigned before the iterations given by the formula of Kaldi's script."""
    layout = Layout(1, 6)
    plan = make_plan(layout, dataclasses.replace(reference, realign_times=[0.3, 0.6]))
    first = {k: min(job.iteration for job in plan if job.alignment == k) for k in range(3)}
    assert first == {0: 0, 1: 9, 2: 14}
    assert [job.alignment for job in plan] == sorted(job.alignment for job in plan)
    assert [job._replace(alignment=0) for job in plan] == make_plan(layout, reference)
    # The share of jobs before that iteration is the requested time, up to the size of an iteration.
    before = sum(job.iteration < 9 for job in plan) / len(plan)
    assert before == pytest.approx(0.3, abs=0.05)
    constant = dataclasses.replace(reference, num_jobs_initial=4, realign_times=[0.5])
    assert [job.alignment for job in make_plan(layout, constant) if job.job == 1] == [0] * 6 + [1] * 6
    for times in ([0.01], [0.5, 0.51], [0.999]):
        with pytest.raises(ConfigError, match="realign_times: "):
            make_plan(layout, dataclasses.replace(reference, realign_times=times))


def test_learning_rate_schedules(make_settings) -> None:
    """Each goes from the initial to the final rate; half-way they have the geometric and the arithmetic mean."""
    for name in ("exponential", "linear"):
        assert SCHEDULES[name](0.1, 0.004, 0, 8.0) == pytest.approx(0.1)
        assert SCHEDULES[name](0.1, 0.004, 8, 8.0) == pytest.approx(0.004)
    assert SCHEDULES["exponential"](0.1, 0.004, 4, 8.0) == pytest.approx(0.02)
    assert SCHEDULES["linear"](0.1, 0.004, 4, 8.0) == pytest.approx(0.052)
    plans = [make_plan(Layout(4, 8), make_settings(lrate_schedule=name)) for name in SCHEDULES]
    assert plans[0] != plans[1]
    assert plans[0][-1].learning_rate == plans[1][-1].learning_rate
