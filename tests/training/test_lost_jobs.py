"""Jobs that are given up: the ledger, and what later jobs make up for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ngsgd.data.egs import Layout
from ngsgd.errors import DataError, ModelError, TrainingError
from ngsgd.network.storage import FORMAT, Header, read_header, write_model
from ngsgd.training.lost_jobs import (
    LostJob,
    StragglerMonitor,
    jobs_after_losses,
    lost_jobs_in_history,
    read_lost_jobs,
    reassign_lost_archives,
    record_failure,
    record_lost_jobs,
    write_lost_marker,
)
from ngsgd.training.plan import Job, make_plan
from ngsgd.training.progress import read_progress
from ngsgd.training.run import Run


@pytest.fixture
def plan(make_settings) -> list[Job]:
    return make_plan(Layout(5, 8), make_settings(num_jobs_initial=3, num_jobs_final=3))


@pytest.fixture
def run(make_settings, plan, tmp_path: Path) -> Run:
    made = Run(tmp_path, make_settings(), Path("data"), Path("egs"))
    made.plan.write_text("\n".join("\t".join(map(str, row)) for row in [Job._fields, *plan]) + "\n")
    return made


def trained(run: Run, job: Job) -> None:
    history = {"job": job._asdict()}
    write_model(run.job(job.iteration, job.job), {}, Header(format=FORMAT, architecture=[], history=history))


def outputs(run: Run, jobs: list[Job]) -> list[Path]:
    return [run.job(job.iteration, job.job) for job in jobs]


def work(jobs: list[Job]) -> list[tuple[int, int]]:
    return [(job.archive, job.frame) for job in jobs]


def test_what_is_lost_is_trained_on_later(plan: list[Job]) -> None:
    assert reassign_lost_archives(plan, set()) == plan
    jobs = reassign_lost_archives(plan, {(1, 2)})
    lost, order = work(plan)[4], work(plan)
    # The first job of each later iteration takes what the one before it was to have.
    assert work(jobs)[:6] == order[:6]
    assert work(jobs)[6:9] == [lost, *order[7:9]]
    assert work(jobs)[9:12] == [order[6], *order[10:12]]
    assert [job._replace(archive=0, frame=0) for job in jobs] == [job._replace(archive=0, frame=0) for job in plan]
    last = plan[-3:]
    processed = [w for job, w in zip(jobs, work(jobs), strict=True) if (job.iteration, job.job) != (1, 2)]
    assert sorted([*processed, (last[0].archive, last[0].frame)]) == sorted(order)


def test_what_is_lost_again_is_trained_on_later_still(plan: list[Job]) -> None:
    jobs = reassign_lost_archives(plan, {(1, 2), (1, 3), (2, 1)})
    order = work(plan)
    assert work(jobs)[6:9] == [order[4], order[5], order[8]]
    assert work(jobs)[9:12] == [order[6], order[7], order[4]]


def test_a_lost_job_goes_into_the_ledger_and_stays_there(run: Run, plan: list[Job]) -> None:
    jobs = plan[3:6]
    trained(run, jobs[0])
    trained(run, jobs[2])
    assert record_failure(run, jobs[1], "killed\ttwice", attempts_left=1, min_jobs=2) is False
    assert not run.job(1, 2).exists()
    assert record_failure(run, jobs[1], "killed\ttwice", attempts_left=0, min_jobs=2) is True
    assert record_lost_jobs(jobs, outputs(run, jobs), run.ledger, 2) == {2: "killed twice"}
    assert read_lost_jobs(run.ledger) == [LostJob(1, 2, jobs[1].archive, jobs[1].frame, "killed twice")]
    before = run.ledger.read_bytes()
    for path in outputs(run, jobs):
        path.unlink()
    trained(run, jobs[0])
    trained(run, jobs[2])
    # The ledger holds whatever may be lost now.
    assert record_lost_jobs(jobs, outputs(run, jobs), run.ledger, None) == {2: "killed twice"}
    assert run.ledger.read_bytes() == before


def test_a_model_of_another_plan_is_not_averaged(run: Run, plan: list[Job]) -> None:
    jobs = plan[:3]
    for job in jobs:
        trained(run, job._replace(learning_rate=0.5) if job.job == 2 else job)
    with pytest.raises(ModelError, match=r"0\.2\.safetensors: not the model of job 2 of iteration 0"):
        record_lost_jobs(jobs, outputs(run, jobs), run.ledger, None)


def test_more_are_lost_than_may_be(run: Run, plan: list[Job]) -> None:
    jobs = plan[:3]
    trained(run, jobs[0])
    for job in jobs[1:]:
        assert record_failure(run, job, "gone", attempts_left=0, min_jobs=2)
    with pytest.raises(TrainingError, match="iteration 0: 2 of 3 jobs are lost"):
        record_lost_jobs(jobs, outputs(run, jobs), run.ledger, 2)
    assert [path.exists() for path in outputs(run, jobs)] == [True, False, False]
    assert not run.ledger.exists()


def test_all_jobs_are_needed_where_nothing_is_said(run: Run, plan: list[Job]) -> None:
    assert record_failure(run, plan[0], "gone", attempts_left=0, min_jobs=None) is False
    assert record_failure(run, plan[0], "gone", attempts_left=0, min_jobs=3) is False
    assert not run.job(0, 1).exists()
    told = read_progress(run.progress(0, 1))
    assert told is not None
    assert (told.state, told.attempt, told.reason) == ("failed", 1, "gone")


def test_a_model_that_came_after_all_is_not_replaced(run: Run, plan: list[Job]) -> None:
    trained(run, plan[0])
    write_lost_marker(plan[0], run.job(0, 1), "too slow")
    assert "lost" not in read_header(run.job(0, 1))["history"]["job"]


def test_jobs_know_what_was_lost_from_the_model_that_they_start_from(run: Run, plan: list[Job]) -> None:
    history = {"iterations": [{"iteration": 0, "jobs": [1, 2, 3]}, {"iteration": 1, "jobs": [1, 3], "lost": [2]}]}
    assert lost_jobs_in_history(history) == {(1, 2)}
    assert lost_jobs_in_history({}) == set()
    assert jobs_after_losses(run.plan, 2, set()) == plan[6:9]
    assert jobs_after_losses(run.plan, 2, {(1, 2)}) == reassign_lost_archives(plan, {(1, 2)})[6:9]


@pytest.mark.parametrize("text", ["", "iteration\tjob\n", "iteration\tjob\tarchive\tframe\treason\n1\t2\n"])
def test_a_damaged_ledger_is_named(run: Run, text: str) -> None:
    run.ledger.write_text(text)
    with pytest.raises(DataError, match=r"lost\.tsv: not a ledger"):
        read_lost_jobs(run.ledger)


def test_stragglers(run: Run, make_settings) -> None:
    jobs = make_plan(Layout(5, 8), make_settings(num_jobs_initial=5, num_jobs_final=5))[:5]
    paths = outputs(run, jobs)
    stragglers = StragglerMonitor(timeout=10.0, min_jobs=2)
    assert not stragglers.overdue(paths, 0.0)
    assert not stragglers.overdue(paths, 100.0)  # nothing is there to go on with
    trained(run, jobs[0])
    write_lost_marker(jobs[4], paths[4], "lost")  # which is nothing to go on with, either
    assert not stragglers.overdue(paths, 101.0)
    assert not stragglers.overdue(paths, 150.0)
    trained(run, jobs[1])
    assert not stragglers.overdue(paths, 151.0 - 50.0 + 1.0)
    assert not stragglers.overdue(paths, 110.0)
    trained(run, jobs[3])  # the wait begins anew
    assert not stragglers.overdue(paths, 112.0)
    assert not stragglers.overdue(paths, 121.0)
    assert stragglers.overdue(paths, 123.0)


def test_a_failure_is_told(run: Run, plan: list[Job]) -> None:
    path = run.progress(0, 1)
    path.parent.mkdir()
    told = {
        "state": "running", "attempt": 2, "started": 1.0, "updated": 9.0, "host": "n1", "number": "77", "frames": 5,
        "of": 10, "log_probability": -1.5, "reason": None,
    }  # fmt: skip
    path.write_text(json.dumps(told))
    record_failure(run, plan[0], "killed", attempts_left=1, min_jobs=None)
    after = read_progress(path)
    assert after is not None
    assert (after.state, after.attempt, after.host, after.frames, after.reason) == ("failed", 2, "n1", 5, "killed")
