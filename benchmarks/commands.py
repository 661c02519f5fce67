"""The arguments of the ``ngsgd`` commands of a run's rules, for benchmarks that call them without Snakemake."""

from __future__ import annotations

from pathlib import Path

from ngsgd.training.run import Run


def train(run: Run, iteration: int, job: int) -> list[str | Path]:
    """A training job of a run; the job finds its archive next to the one given."""
    return [
        *("train", str(iteration), str(job), "--settings", run.settings_file, "--plan", run.plan_file),
        *("--model", run.model_file(iteration), "--archive", run.archive_file(0)),
        *("--output", run.job_file(iteration, job), "--progress", run.progress_file(iteration, job)),
    ]


def diagnose(run: Run, x: int) -> list[str | Path]:
    """The diagnostics of model x."""
    return [
        *("diagnose", "--settings", run.settings_file, "--plan", run.plan_file, "--model", run.model_file(x)),
        *("--examples", run.valid_file, run.train_subset_file, "--output", run.diagnostics_file(x)),
    ]


def end_iteration(run: Run, iteration: int, jobs: int) -> list[str | Path]:
    """The averaging at the end of an iteration."""
    return [
        *("end-iteration", str(iteration), "--settings", run.settings_file, "--plan", run.plan_file),
        *(
            "--jobs",
            *(run.job_file(iteration, job) for job in range(1, jobs + 1)),
            "--previous",
            run.model_file(iteration),
        ),
        *("--output", run.model_file(iteration + 1), "--report", run.report_file(iteration + 1)),
        *("--lost-jobs", run.lost_jobs_file, "--progress", run.progress_file(iteration, 0)),
    ]
