"""The inputs and targets of a study's rules, and the division of a study into several calls."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from ngsgd.study.figures import figures_of
from ngsgd.study.grid import FOLDER, Experiment, Study
from ngsgd.training.run import Run
from ngsgd.workflow.plans import Plans
from ngsgd.workflow.snakemake_call import SnakemakeCall


class StudyTargets:
    """The input functions of a study's rules.

    Args:
        study: the study.
        rates: the learning rates of each experiment that have been chosen when the call starts.
        runs: the runs by name.
        plans: their plans.
        call: the call of Snakemake.
    """

    def __init__(
        self,
        study: Study,
        rates: Mapping[str, dict[str, float]],
        runs: Mapping[str, Run],
        plans: Plans,
        call: SnakemakeCall,
    ) -> None:
        self._study, self._rates, self._runs, self._plans, self._call = study, rates, runs, plans, call
        # Named after its experiments, so that several studies can share the folder.
        self.page = f"results/{'-'.join(study.experiments)}.md"
        self._unfinished = self._unfinished_parts()

    def experiment(self, wildcards: Any) -> Experiment:
        return self._study.experiments[wildcards.experiment]

    def metrics_of_sweep(self, wildcards: Any) -> list[str]:
        return self._metrics(self.experiment(wildcards).sweep_runs())

    def metrics_of_grid(self, wildcards: Any) -> list[str]:
        return self._metrics(self._grid(wildcards.experiment))

    def results_of_grid(self, wildcards: Any) -> list[str]:
        return _last_files(self._grid(wildcards.experiment))

    def runs_of_cost(self, wildcards: Any) -> dict[str, str]:
        """The folder of the first run of each optimiser, whose settings are used to measure a minibatch."""
        folders: dict[str, str] = {}
        for name in self._grid(wildcards.experiment):
            folders.setdefault(self._runs[name].settings.optimizer, f"results/{name}")
        return folders

    def files_of_cost(self, wildcards: Any) -> list[str]:
        folders = self.runs_of_cost(wildcards).values()
        return [f"{folder}/{file}" for folder in folders for file in ("final.safetensors", "settings.json")]

    def table_of_figure(self, wildcards: Any) -> str:
        table = figures_of(self.experiment(wildcards))[wildcards.figure]
        return f"{FOLDER}/{wildcards.experiment}/{table}.tsv"

    def tables(self) -> dict[str, list[str]]:
        """The names of the tables of each experiment."""
        return {
            name: [
                *("curves", "speedup", "summary", "tuning"),
                *([] if experiment.methods else ["cost"]),
                *(["recorded"] if experiment.recorded else []),
            ]
            for name, experiment in self._study.experiments.items()
        }

    def tables_of_page(self, wildcards: Any) -> list[str]:
        return [f"{FOLDER}/{name}/{table}.tsv" for name, tables in self.tables().items() for table in tables]

    def corpora_of_page(self, wildcards: Any) -> list[str]:
        return [f"{self._runs[self._grid(name)[0]].data}/corpus.json" for name in self._study.experiments]

    def figures(self) -> list[str]:
        """The names of all figures."""
        return [name for experiment in self._study.experiments.values() for name in figures_of(experiment)]

    def study(self, wildcards: Any) -> list[str]:
        """The targets of this call: learning rates that are not chosen yet, else a part of a grid, else the page."""
        open_experiments = sorted(self._study.experiments.keys() - self._rates.keys())
        if open_experiments:
            rates = [f"{FOLDER}/{name}/learning_rates.json" for name in open_experiments]
            # Those of another sweep may exist already.
            self._call.force(rates)
            return rates
        if self._unfinished and self._makes_parts():
            return [*self._metrics(self._unfinished[0]), *_last_files(self._unfinished[0])]
        return [
            self.page,
            *(
                f"{FOLDER}/{name}/{figure}.{suffix}"
                for name, experiment in self._study.experiments.items()
                for figure in figures_of(experiment)
                for suffix in ("png", "pdf")
            ),
        ]

    def needs_another_call(self) -> bool:
        """Whether this call has chosen learning rates, or made a part of a grid, so that the next one has work to do.

        A call that has made neither would be repeated for ever.
        """
        if self._study.rates(FOLDER) != self._rates:
            return True
        return self._makes_parts() and self._unfinished_parts() != self._unfinished

    def _grid(self, experiment: str) -> list[str]:
        """The names of the runs of an experiment's grid."""
        if experiment not in self._rates:
            raise self._call.error_type(
                f"{experiment}: its learning rates are not chosen yet; make the target paper, which chooses them first"
            )
        return list(self._study.experiments[experiment].grid_runs(self._rates[experiment]))

    def _metrics(self, runs: Iterable[str]) -> list[str]:
        names = list(runs)
        for name in names:
            self._plans.plan_for(name)
        return [f"results/{name}/metrics.tsv" for name in names]

    def _unfinished_parts(self) -> list[list[str]]:
        """The parts of the grids that are not complete, as far as their learning rates are chosen."""
        parts = (list(part) for part in self._study.parts(self._study.rates(FOLDER)))
        return [part for part in parts if not all(map(os.path.exists, _last_files(part)))]

    def _makes_parts(self) -> bool:
        """Whether a call makes only one part of a grid.

        A cluster has use for all jobs at once; forced files would be made again by each following call.
        """
        return not (self._call.on_cluster or self._call.forces_all or self._call.forced)


def _last_files(runs: Iterable[str]) -> list[str]:
    """The files that are made last of runs."""
    return [f"results/{name}/{file}.json" for name in runs for file in ("combination", "evaluation")]
