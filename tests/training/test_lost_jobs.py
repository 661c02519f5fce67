"""Tests of lost jobs: the ledger, and the reassignment of their archives to later jobs."""

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
    run = Run(tmp_path, make_settings(), Path("data"), Path("egs"))
    run.plan_file.write_text("\n".join("\t".join(map(str, row)) for row in [Job._fields, *plan]) + "\n")
    return run


def write_job_model(run: Run, job: Job) -> None:
    history = {"job": job._asdict()}
    write_model(run.job_file(job.iteration, job.job), {}, Header(format=FORMAT, architecture=[], history=history))


def outputs(run: Run, jobs: list[Job]) -> dict[int, Path]:
    return {job.job: run.job_file(job.iteration, job.job) for job in jobs}


def fail(run: Run, job: Job, reason: str, attempts_left: int, min_jobs: int | None) -> bool:
    output, progress = run.job_file(job.iteration, job.job), run.progress_file(job.iteration, job.job)
    return record_failure(job, run.plan_file, output, progress, reason, attempts_left, min_jobs)


def archives_of(jobs: list[Job]) -> list[tuple[int, int]]:
    return [(job.archive, job.frame) for job in jobs]


def test_archive_of_a_lost_job_is_reassigned(plan: list[Job]) -> None:
    assert reassign_lost_archives(plan, set()) == plan
    jobs = reassign_lost_archives(plan, {(1, 2)})
    lost, order = archives_of(plan)[4], archives_of(plan)
    # The first job of each later iteration takes the archive displaced or lost in the iteration before.
    assert archives_of(jobs)[:6] == order[:6]
    assert archives_of(jobs)[6:9] == [lost, *order[7:9]]
    assert archives_of(jobs)[9:12] == [order[6], *order[10:12]]
    assert [job._replace(archive=0, frame=0) for job in jobs] == [job._replace(archive=0, frame=0) for job in plan]
    last = plan[-3:]
    processed = [
        archive for job, archive in zip(jobs, archives_of(jobs), strict=True) if (job.iteration, job.job) != (1, 2)
    ]
    assert sorted([*processed, (last[0].archive, last[0].frame)]) == sorted(order)


def test_archive_that_is_lost_twice_is_reassigned_again(plan: list[Job]) -> None:
    jobs = reassign_lost_archives(plan, {(1, 2), (1, 3), (2, 1)})
    order = archives_of(plan)
    assert archives_of(jobs)[6:9] == [order[4], order[5], order[8]]
    assert archives_of(jobs)[9:12] == [order[6], order[7], order[4]]


def test_lost_job_is_recorded_in_the_ledger_for_good(run: Run, plan: list[Job]) -> None:
    jobs = plan[3:6]
    write_job_model(run, jobs[0])
    write_job_model(run, jobs[2])
    assert fail(run, jobs[1], "killed\ttwice", attempts_left=1, min_jobs=2) is False
    assert not run.job_file(1, 2).exists()
    assert fail(run, jobs[1], "killed\ttwice", attempts_left=0, min_jobs=2) is True
    assert record_lost_jobs(jobs, outputs(run, jobs), run.lost_jobs_file, 2) == {2: "killed twice"}
    assert read_lost_jobs(run.lost_jobs_file) == [LostJob(1, 2, jobs[1].archive, jobs[1].frame, "killed twice")]
    before = run.lost_jobs_file.read_bytes()
    for path in outputs(run, jobs).values():
        path.unlink()
    write_job_model(run, jobs[0])
    write_job_model(run, jobs[2])
    # A loss in the ledger holds whatever `min_jobs` is now.
    assert record_lost_jobs(jobs, outputs(run, jobs), run.lost_jobs_file, None) == {2: "killed twice"}
    assert run.lost_jobs_file.read_bytes() == before


def test_model_of_another_plan_is_refused(run: Run, plan: list[Job]) -> None:
    jobs = plan[:3]
    for job in jobs:
        write_job_model(run, job._replace(learning_rate=0.5) if job.job == 2 else job)
    with pytest.raises(ModelError, match=r"0\.2\.safetensors: not the model of job 2 of iteration 0"):
        record_lost_jobs(jobs, outputs(run, jobs), run.lost_jobs_file, None)


def test_too_many_lost_jobs_are_an_error(run: Run, plan: list[Job]) -> None:
    jobs = plan[:3]
    write_job_model(run, jobs[0])
    for job in jobs[1:]:
        assert fail(run, job, "gone", attempts_left=0, min_jobs=2)
    with pytest.raises(TrainingError, match="iteration 0: 2 of 3 jobs are lost"):
        record_lost_jobs(jobs, outputs(run, jobs), run.lost_jobs_file, 2)
    assert [path.exists() for path in outputs(run, jobs).values()] == [True, False, False]
    assert not run.lost_jobs_file.exists()


def test_no_job_may_be_lost_by_default(run: Run, plan: list[Job]) -> None:
    assert fail(run, plan[0], "gone", attempts_left=0, min_jobs=None) is False
    assert fail(run, plan[0], "gone", attempts_left=0, min_jobs=3) is False
    assert not run.job_file(0, 1).exists()
    progress = read_progress(run.progress_file(0, 1))
    assert progress is not None
    assert (progress.state, progress.attempt, progress.reason) == ("failed", 1, "gone")


def test_lost_marker_does_not_replace_a_model(run: Run, plan: list[Job]) -> None:
    write_job_model(run, plan[0])
    write_lost_marker(plan[0], run.job_file(0, 1), "too slow")
    assert "lost" not in read_header(run.job_file(0, 1))["history"]["job"]


def test_lost_jobs_are_read_from_the_history_of_a_model(run: Run, plan: list[Job]) -> None:
    history = {"iterations": [{"iteration": 0, "jobs": [1, 2, 3]}, {"iteration": 1, "jobs": [1, 3], "lost": [2]}]}
    assert lost_jobs_in_history(history) == {(1, 2)}
    assert lost_jobs_in_history({}) == set()
    assert jobs_after_losses(run.plan_file, 2, set()) == plan[6:9]
    assert jobs_after_losses(run.plan_file, 2, {(1, 2)}) == reassign_lost_archives(plan, {(1, 2)})[6:9]


@pytest.mark.parametrize("text", ["", "iteration\tjob\n", "iteration\tjob\tarchive\tframe\treason\n1\t2\n"])
def test_damaged_ledger_is_refused(run: Run, text: str) -> None:
    run.lost_jobs_file.write_text(text)
    with pytest.raises(DataError, match=r"lost\.tsv: not a ledger"):
        read_lost_jobs(run.lost_jobs_file)


def test_stragglers(run: Run, make_settings) -> None:
    jobs = make_plan(Layout(5, 8), make_settings(num_jobs_initial=5, num_jobs_final=5))[:5]
    paths = list(outputs(run, jobs).values())
    stragglers = StragglerMonitor(timeout=10.0, min_jobs=2)
    assert not stragglers.overdue(paths, 0.0)
    assert not stragglers.overdue(paths, 100.0)  # there is no finished job yet
    write_job_model(run, jobs[0])
    write_lost_marker(jobs[4], paths[4], "lost")  # a lost job does not count as finished
    assert not stragglers.overdue(paths, 101.0)
    assert not stragglers.overdue(paths, 150.0)
    write_job_model(run, jobs[1])
    assert not stragglers.overdue(paths, 151.0 - 50.0 + 1.0)
    assert not stragglers.overdue(paths, 110.0)
    write_job_model(run, jobs[3])  # the wait starts again
    assert not stragglers.overdue(paths, 112.0)
    assert not stragglers.overdue(paths, 121.0)
    assert stragglers.overdue(paths, 123.0)


def test_failure_is_written_to_the_progress_file(run: Run, plan: list[Job]) -> None:
    path = run.progress_file(0, 1)
    path.parent.mkdir()
    running = {
        "state": "running", "attempt": 2, "started": 1.0, "updated": 9.0, "host": "n1", "number": "77", "frames": 5,
        "of": 10, "log_probability": -1.5, "reason": None,
    }  # fmt: skip
    path.write_text(json.dumps(running))
    fail(run, plan[0], "killed", attempts_left=1, min_jobs=None)
    after = read_progress(path)
    assert after is not None
    assert (after.state, after.attempt, after.host, after.frames, after.reason) == ("failed", 2, "n1", 5, "killed")
