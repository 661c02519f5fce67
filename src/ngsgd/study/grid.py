"""Defines the runs of a study: a sweep of learning rates for each method, then a grid of methods, jobs and seeds.

A method is an optimiser, or a name for an optimiser with settings of its own.
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
from ngsgd.training.call_settings import CALL_SETTINGS

FOLDER = Path("results/paper")  # the results of a study
KEYS = ("paper", "scale", "seeds", "turnaround_seconds")  # of the configuration; the other keys are settings of runs


@dataclass(frozen=True)
class Experiment:
    """One corpus and the runs on it.

    Attributes:
        name: name of the experiment.
        settings: settings of all its runs; they override `base`.
        sweep: settings of the runs of the sweep only; they override `settings`.
        methods: settings of each method that is not just an optimiser; empty if the methods are optimisers.
        optimizers: additional settings of optimisers, by method.
        rates: initial effective learning rates to be tried, by method.
        decay: ratio of the initial to the final learning rate of a run.
        jobs: numbers of jobs per iteration.
        growing: methods that also get a run whose number of jobs grows from the minimum to the maximum of `jobs`.
        num_seeds: number of seeds per method and number of jobs.
        base: settings of the configuration.
        recorded: path of a table of another program's results with the same settings, see `recorded.read`; or None.
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
        """Checks that the results can be compared as the page of results requires.

        Raises:
            ConfigError: a method has no learning rate, or a run to compare with is missing.
        """
        where = f"paper: {self.name}:"
        if min(self.jobs, default=0) != 1 or max(self.jobs) == 1:
            raise ConfigError(f"{where} jobs: {list(self.jobs)}: must contain 1 and a larger number to compare with it")
        if empty := [method for method, rates in self.rates.items() if not rates]:
            raise ConfigError(f"{where} rates: {empty[0]}: empty; list at least one learning rate")
        if self.methods and self.methods.keys() != self.rates.keys():
            raise ConfigError(
                f"{where} methods and rates must have the same keys, got {[*self.methods]} and {[*self.rates]}"
            )
        if not self.methods and not {"sgd", "ng-sgd"} <= self.rates.keys():
            raise ConfigError(
                f"{where} rates: must contain sgd and ng-sgd if there are no methods, got {[*self.rates]}"
            )
        for key, names in (("growing", self.growing), ("optimizers", self.optimizers)):
            if other := set(names) - self.rates.keys():
                raise ConfigError(f"{where} {key}: {sorted(other)[0]} has no entry in rates")

    def sweep_runs(self) -> dict[str, dict[str, Any]]:
        """Returns the settings of the sweep's runs by name; they have one job unless `sweep` sets another number."""
        return {
            self.sweep_run(method, rate): dict(self.settings)
            | self._run(method, rate, (1, 1), seed=0)
            | dict(self.sweep)
            for method, rates in self.rates.items()
            for rate in rates
        }

    def key(self) -> str:
        """Returns a hash of the sweep; learning rates that were chosen by a different sweep are not used."""
        return digest([self.sweep_runs(), self.base])

    def sweep_run(self, method: str, rate: float) -> str:
        return f"paper-{self.name}-{method}-rate{rate:g}"

    def grid_runs(self, chosen: Mapping[str, float]) -> dict[str, dict[str, Any]]:
        """Returns the settings of the runs of the grid by name.

        Args:
            chosen: initial effective learning rate of each method.
        """
        runs = {}
        for point in self.points():
            method, jobs, seed = point
            first, last = (min(self.jobs), max(self.jobs)) if jobs == 0 else (jobs, jobs)
            runs[self.grid_run(*point)] = dict(self.settings) | self._run(method, chosen[method], (first, last), seed)
        return runs

    def points(self) -> list[tuple[str, int, int]]:
        """Returns method, number of jobs (0 if it grows) and seed of each run of the grid.

        With `methods`, only the first one is run with a single job: they differ in how models are averaged.
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
        experiments: experiments by name.
        turnaround: seconds from the end of an iteration to the start of the next, for times on a cluster.
    """

    experiments: Mapping[str, Experiment]
    turnaround: float

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Builds the study of a configuration with the `KEYS`; ``config/paper.yaml`` explains them.

        ``scale`` multiplies the hours of synthetic speech. The size of archives stays the same, so that there are more
        iterations.

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
            for name, entry in config["paper"].items():
                settings = dict(entry["settings"])
                if settings.get("corpus", config.get("corpus")) == "synthetic":
                    settings["hours"] = scale * settings.get("hours", config.get("hours", 1.0))
                experiments[name] = experiment = Experiment(
                    name=str(name),
                    settings=settings,
                    sweep=dict(entry["sweep"]),
                    methods={method: dict(own) for method, own in entry.get("methods", {}).items()},
                    optimizers={method: dict(own) for method, own in entry.get("optimizers", {}).items()},
                    rates={method: tuple(map(float, rates)) for method, rates in entry["rates"].items()},
                    decay=float(entry["decay"]),
                    jobs=tuple(map(int, entry["jobs"])),
                    growing=tuple(entry["growing"]),
                    num_seeds=int(entry.get("seeds", num_seeds)),
                    base=base,
                    recorded=entry.get("recorded"),
                )
                experiment.check()
            return cls(experiments, float(config["turnaround_seconds"]))
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise ConfigError(f"paper: {e!r}; see config/paper.yaml for the expected keys") from None

    def rates(self, folder: Path) -> dict[str, dict[str, float]]:
        """Reads the chosen learning rates of each experiment whose sweep is finished.

        Args:
            folder: folder with a subfolder for each experiment, into which `write_rates` has written.

        Raises:
            ConfigError: a file of learning rates is damaged.
        """
        found = {}
        for name, experiment in self.experiments.items():
            rates = read_rates(folder / name / "learning_rates.json", experiment)
            if rates is not None:
                found[name] = rates
        return found

    def runs(self, rates: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
        """Returns the runs that are already determined: all sweeps, and each grid whose learning rates are chosen.

        Args:
            rates: chosen learning rates, see `rates`.
        """
        runs: dict[str, dict[str, Any]] = {}
        for name, experiment in self.experiments.items():
            runs |= experiment.sweep_runs()
            if name in rates:
                runs |= experiment.grid_runs(rates[name])
        return runs

    def parts(self, rates: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
        """Splits the runs of the grids into parts, one per experiment and seed, for successive Snakemake calls.

        Snakemake's time per job grows with the number of jobs in a call.

        Args:
            rates: chosen learning rates, see `rates`.
        """
        return [
            [experiment.grid_run(*point) for point in experiment.points() if point[2] == seed]
            for name, experiment in self.experiments.items()
            if name in rates
            for seed in range(experiment.num_seeds)
        ]


def tuning(experiment: Experiment, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Returns the result of each learning rate of a sweep.

    Args:
        experiment: the experiment that the sweep belongs to.
        tables: metrics of each run, by run name.

    Returns:
        Columns method, rate; valid_log_probability and train_log_probability of the last model; chosen: whether the
        rate is the method's best by validation log-probability.
    """
    rows: list[dict[str, Any]] = []
    for method, rates in experiment.rates.items():
        ends = [tables[experiment.sweep_run(method, rate)].iloc[-1] for rate in rates]
        # NaN means that training diverged, which must not win.
        objectives = np.nan_to_num([float(end["valid_log_probability"]) for end in ends], nan=-np.inf)
        best = int(objectives.argmax())
        for i, (rate, end) in enumerate(zip(rates, ends, strict=True)):
            scores = {c: float(end[c]) for c in ("valid_log_probability", "train_log_probability")}
            rows.append({"method": method, "rate": rate} | scores | {"chosen": i == best})
    return pd.DataFrame(rows)


def write_rates(table: pd.DataFrame, experiment: Experiment, path: Path) -> None:
    """Writes the chosen learning rates and the key of their sweep (JSON).

    Raises:
        OSError: the file cannot be written.
    """
    best = table[table["chosen"]]
    chosen = {str(method): float(rate) for method, rate in zip(best["method"], best["rate"], strict=True)}
    write_text(path, json.dumps({"sweep": experiment.key(), "chosen": chosen}, indent=1) + "\n")


def read_rates(path: Path, experiment: Experiment) -> dict[str, float] | None:
    """Reads the chosen learning rates; returns None if there are none yet or if they are of another sweep.

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
        raise ConfigError(f"{path}: not the learning rates of a sweep ({e}); delete the file and run again") from None
