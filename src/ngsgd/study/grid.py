"""The runs of a study: a sweep of learning rates for each method, then a grid of methods, jobs and seeds.

A method is an optimiser, or one with settings of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from ngsgd.errors import ConfigError
from ngsgd.files import digest, write_text
from ngsgd.training.execution import CALL_SETTINGS

KEYS = ("paper", "scale", "seeds", "turnaround_seconds")  # of the configuration, beside the settings of runs


@dataclass(frozen=True)
class Experiment:
    """One corpus, and what is to be run on it.

    Attributes:
        name: of the experiment.
        settings: of all its runs, beside the configuration's.
        sweep: further ones of the runs of the sweep.
        methods: settings of those that are no mere optimisers.
        optimizers: settings of such as are, beside their learning rates.
        rates: for each method the initial effective learning rates that are tried.
        decay: by which the learning rate falls from a run's begin to its end.
        jobs: the numbers of jobs an iteration.
        growing: for the methods of it a run whose number of jobs grows from the least to the most.
        num_seeds: of each point of the grid.
        base: the configuration's settings, over which those of the experiment go.
        recorded: a table of what another program came to with the same, see `recorded.beside`; or None.
    """

    name: str
    settings: Mapping[str, Any]
    sweep: Mapping[str, Any]
    methods: Mapping[str, Mapping[str, Any]]
    optimizers: Mapping[str, Mapping[str, Any]]
    rates: Mapping[str, tuple[float, ...]]
    decay: float
    jobs: tuple[int, ...]
    growing: tuple[str, ...]
    num_seeds: int
    base: Mapping[str, Any]
    recorded: str | None

    def check(self) -> None:
        """Sees that what is to be told in the end can be told.

        Raises:
            ConfigError: a method has no learning rate, or there is nothing to compare with.
        """
        where = f"paper: {self.name}:"
        if min(self.jobs, default=0) != 1 or max(self.jobs) == 1:
            raise ConfigError(f"{where} jobs: {list(self.jobs)}: 1 is needed, and more, which are measured against it")
        if empty := [method for method, rates in self.rates.items() if not rates]:
            raise ConfigError(f"{where} rates: {empty[0]}: none is given")
        if self.methods and self.methods.keys() != self.rates.keys():
            raise ConfigError(
                f"{where} methods and rates must be of the same, got {[*self.methods]} and {[*self.rates]}"
            )
        if not self.methods and not {"sgd", "ng-sgd"} <= self.rates.keys():
            raise ConfigError(f"{where} rates: without methods sgd and ng-sgd are compared; {[*self.rates]} are given")
        for key, names in (("growing", self.growing), ("optimizers", self.optimizers)):
            if other := set(names) - self.rates.keys():
                raise ConfigError(f"{where} {key}: {sorted(other)[0]} is not among the rates")

    def sweep_runs(self) -> dict[str, dict[str, Any]]:
        """The runs of the sweep, one job each unless it says otherwise: their names and settings."""
        return {
            self.sweep_run(method, rate): dict(self.settings)
            | self._run(method, rate, (1, 1), seed=0)
            | dict(self.sweep)
            for method, rates in self.rates.items()
            for rate in rates
        }

    def key(self) -> str:
        """Stands for the sweep: what was chosen of another one is no choice."""
        return digest([self.sweep_runs(), self.base])

    def sweep_run(self, method: str, rate: float) -> str:
        return f"paper-{self.name}-{method}-rate{rate:g}"

    def grid_runs(self, chosen: Mapping[str, float]) -> dict[str, dict[str, Any]]:
        """The runs of the grid: their names and settings.

        Args:
            chosen: the initial effective learning rate of each method.
        """
        runs = {}
        for point in self.points():
            method, jobs, seed = point
            first, last = (min(self.jobs), max(self.jobs)) if jobs == 0 else (jobs, jobs)
            runs[self.grid_run(*point)] = dict(self.settings) | self._run(method, chosen[method], (first, last), seed)
        return runs

    def points(self) -> list[tuple[str, int, int]]:
        """Method, number of jobs (0 where it grows) and seed of each run of the grid.

        What is made of an average of one model is of no interest: of several `methods` only the first has a single job.
        """
        first = next(iter(self.rates))
        return [
            (method, jobs, seed)
            for method in self.rates
            for jobs in (*self.jobs, *((0,) if method in self.growing else ()))
            if jobs != 1 or method == first or not self.methods
            for seed in range(self.num_seeds)
        ]

    def grid_run(self, method: str, jobs: int, seed: int) -> str:
        return f"paper-{self.name}-{method}-{jobs or 'growing'}-seed{seed}"

    def _run(self, method: str, rate: float, jobs: tuple[int, int], seed: int) -> dict[str, Any]:
        return {
            **self.methods.get(method, {"optimizer": method}),
            **self.optimizers.get(method, {}),
            "initial_effective_lrate": rate,
            "final_effective_lrate": rate / self.decay,
            "num_jobs_initial": jobs[0],
            "num_jobs_final": jobs[1],
            "seed": seed,
        }


@dataclass(frozen=True)
class Study:
    """All experiments of a configuration.

    Attributes:
        experiments: by name.
        turnaround: seconds from one iteration's end to the next one's begin, for times on a cluster.
    """

    experiments: Mapping[str, Experiment]
    turnaround: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """That of a configuration with the `KEYS`; ``config/paper.yaml`` explains them.

        ``scale`` multiplies the hours of speech; archives stay as they are, so that there are more iterations.

        Raises:
            ConfigError: a key is missing or malformed.
        """
        try:
            scale, num_seeds = float(config["scale"]), int(config["seeds"])
            if not (scale > 0.0 and num_seeds > 0):
                raise ConfigError("scale and seeds must be above 0")
            experiments = {}
            others = {*KEYS, *CALL_SETTINGS, "runs"}
            base = {key: value for key, value in config.items() if key not in others}
            for name, given in config["paper"].items():
                settings = dict(given["settings"])
                if settings.get("corpus", config.get("corpus")) == "synthetic":
                    settings["hours"] = scale * settings.get("hours", config.get("hours", 1.0))
                experiments[name] = made = Experiment(
                    name=str(name),
                    settings=settings,
                    sweep=dict(given["sweep"]),
                    methods={method: dict(own) for method, own in given.get("methods", {}).items()},
                    optimizers={method: dict(own) for method, own in given.get("optimizers", {}).items()},
                    rates={method: tuple(map(float, rates)) for method, rates in given["rates"].items()},
                    decay=float(given["decay"]),
                    jobs=tuple(map(int, given["jobs"])),
                    growing=tuple(given["growing"]),
                    num_seeds=int(given.get("seeds", num_seeds)),
                    base=base,
                    recorded=given.get("recorded"),
                )
                made.check()
            return cls(experiments, float(config["turnaround_seconds"]))
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise ConfigError(f"paper: {e!r}; config/paper.yaml shows what is expected") from None

    def rates(self, folder: Path) -> dict[str, dict[str, float]]:
        """The learning rates of each experiment for which they are chosen.

        Args:
            folder: in which `write_rates` has written them.

        Raises:
            ConfigError: such a file is damaged.
        """
        found = {}
        for name, experiment in self.experiments.items():
            rates = read_rates(folder / name / "learning_rates.json", experiment)
            if rates is not None:
                found[name] = rates
        return found

    def runs(self, rates: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
        """The runs that can be told already: those of the sweeps, and of each grid whose learning rates are chosen.

        Args:
            rates: as `rates` gives them.
        """
        runs: dict[str, dict[str, Any]] = {}
        for name, experiment in self.experiments.items():
            runs |= experiment.sweep_runs()
            if name in rates:
                runs |= experiment.grid_runs(rates[name])
        return runs

    def parts(self, rates: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
        """The runs of the grids in portions that a call is to make one after the other, an experiment's seed each.

        Snakemake takes the longer over each job the more jobs there are.

        Args:
            rates: as `rates` gives them.
        """
        return [
            [experiment.grid_run(*point) for point in experiment.points() if point[2] == seed]
            for name, experiment in self.experiments.items()
            if name in rates
            for seed in range(experiment.num_seeds)
        ]


def tuning(experiment: Experiment, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What each learning rate of a sweep led to.

    Args:
        experiment: the sweep's.
        tables: the metrics of its runs, by name.

    Returns:
        Columns method, rate, valid_log_probability and train_log_probability of the last model, chosen.
    """
    rows: list[dict[str, Any]] = []
    for method, rates in experiment.rates.items():
        ends = [tables[experiment.sweep_run(method, rate)].iloc[-1] for rate in rates]
        # A rate at which training broke is not the best one.
        objectives = np.nan_to_num([float(end["valid_log_probability"]) for end in ends], nan=-np.inf)
        best = int(objectives.argmax())
        for i, (rate, end) in enumerate(zip(rates, ends, strict=True)):
            scores = {c: float(end[c]) for c in ("valid_log_probability", "train_log_probability")}
            rows.append({"method": method, "rate": rate} | scores | {"chosen": i == best})
    return pd.DataFrame(rows)


def write_rates(table: pd.DataFrame, experiment: Experiment, path: Path) -> None:
    """Writes which learning rates were chosen, and of which sweep (JSON).

    Raises:
        OSError: the file cannot be written.
    """
    best = table[table["chosen"]]
    chosen = {str(method): float(rate) for method, rate in zip(best["method"], best["rate"], strict=True)}
    write_text(path, json.dumps({"sweep": experiment.key(), "chosen": chosen}, indent=1) + "\n")


def read_rates(path: Path, experiment: Experiment) -> dict[str, float] | None:
    """The learning rates that were chosen; None where that has not been done yet, or of another sweep.

    Raises:
        ConfigError: the file is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        chosen = {str(method): float(rate) for method, rate in found["chosen"].items()}
        return chosen if found["sweep"] == experiment.key() else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise ConfigError(f"{path}: not the learning rates of a sweep ({e}); delete it and run again") from None
