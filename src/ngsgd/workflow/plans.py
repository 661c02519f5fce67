"""The plans of the runs, as the rules ask for them while Snakemake builds its graph of jobs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ngsgd.data.egs import Layout
from ngsgd.training.lost_jobs import read_lost_jobs, reassign_lost_archives
from ngsgd.training.plan import Job, make_plan, models_to_combine, read_plan
from ngsgd.training.recipe import Recipe
from ngsgd.training.run import Run
from ngsgd.workflow.runs import recipe_path
from ngsgd.workflow.snakemake_call import SnakemakeCall


class Plans:
    """The plan of each run, made once for a call.

    Args:
        runs: the runs by name.
        call: the call of Snakemake.
        activate_recipe: waits for the checkpoint that makes a recipe's file, given the file and the wildcards ``run``
            and ``key``; Snakemake calls the input function again when the checkpoint has run.
    """

    def __init__(self, runs: Mapping[str, Run], call: SnakemakeCall, activate_recipe: Callable[..., Any]) -> None:
        self._runs, self._call, self._activate_recipe = runs, call, activate_recipe
        self._jobs: dict[str, list[list[Job]]] = {}
        self._layouts: dict[str, Layout] = {}
        self._lost: dict[str, dict[int, set[int]]] = {}

    def plan_for(self, name: str) -> list[list[Job]]:
        """The jobs of each iteration of a run, after its recipe has become active in its folder."""
        if name in self._jobs:
            return self._jobs[name]
        run = self._runs[name]
        path = recipe_path(run)
        # Snakemake does not look at the inputs of a target that exists.
        if not Path(path).exists():
            self._call.force([path])
        self._activate_recipe(path, run=name, key=run.key())
        layout = Recipe.read(path).layout
        plan = make_plan(layout, run.settings)
        if run.plan_file.exists() and read_plan(run.plan_file) != plan:
            raise self._call.error_type(
                f"{run.plan_file} is not the plan of the run's settings; delete it and run again"
            )
        if run.settings_file.exists() and Run.open(run.folder) != run:
            raise self._call.error_type(
                f"{run.settings_file} does not hold the current settings; delete it and run again"
            )
        lost_jobs = read_lost_jobs(run.lost_jobs_file)
        plan = reassign_lost_archives(plan, {(lost.iteration, lost.job) for lost in lost_jobs})
        self._layouts[name] = layout
        self._lost[name] = {}
        for lost in lost_jobs:
            self._lost[name].setdefault(lost.iteration, set()).add(lost.job)
        self._jobs[name] = [list(jobs) for _, jobs in itertools.groupby(plan, key=lambda job: job.iteration)]
        return self._jobs[name]

    def is_planned(self, name: str) -> bool:
        """Whether the call has asked for a run's plan."""
        return name in self._jobs

    def iteration(self, name: str, iteration: int) -> list[Job]:
        """The jobs of one iteration."""
        jobs = self.plan_for(name)
        if iteration >= len(jobs):
            raise self._call.error_type(f"{name}: its plan has {len(jobs)} iterations, there is no {iteration}")
        return jobs[iteration]

    def job(self, wildcards: Any) -> Job:
        """The training job that the wildcards run, iteration and job name."""
        jobs = self.iteration(wildcards.run, int(wildcards.iteration))
        if not 0 < int(wildcards.job) <= len(jobs):
            raise self._call.error_type(
                f"{wildcards.run}: its plan has no job {wildcards.job} in iteration {wildcards.iteration}"
            )
        return jobs[int(wildcards.job) - 1]

    def lost(self, name: str, iteration: int) -> set[int]:
        """The numbers of an iteration's lost jobs."""
        self.plan_for(name)
        return self._lost[name].get(iteration, set())

    def num_archives(self, name: str) -> int:
        """The number of archives of a run's examples."""
        self.plan_for(name)
        return self._layouts[name].num_archives

    def num_iterations(self, name: str) -> int:
        return len(self.plan_for(name))

    def alignment_of_model(self, name: str, x: int) -> int:
        """The alignment on whose labels a model is scored."""
        jobs = self.plan_for(name)
        return jobs[min(x, len(jobs) - 1)][0].alignment

    def starts_alignment(self, name: str, iteration: int) -> bool:
        """Whether an iteration is the first one with its labels."""
        jobs = self.plan_for(name)
        return iteration > 0 and jobs[iteration][0].alignment != jobs[iteration - 1][0].alignment

    def realignment(self, name: str, alignment: int) -> int:
        """The iteration before which a realignment is made."""
        for x, jobs in enumerate(self.plan_for(name)):
            if alignment and jobs[0].alignment == alignment:
                return x
        raise self._call.error_type(f"{name}: its plan has no realignment {alignment}")

    def last_models(self, name: str) -> list[int]:
        """The numbers of the models that the final model is made from."""
        plan = [job for jobs in self.plan_for(name) for job in jobs]
        return models_to_combine(plan, self._layouts[name], self._runs[name].settings)
