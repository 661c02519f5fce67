from pathlib import Path

import pandas as pd
import pytest
import yaml

from ngsgd.errors import ConfigError
from ngsgd.study.grid import KEYS, Study, read_rates, tuning, write_rates
from ngsgd.workflow.configuration import run_settings

from .test_analysis import experiment

ROOT = Path(__file__).resolve().parents[2]


def paper() -> dict:
    return yaml.safe_load((ROOT / "config/paper.yaml").read_text())


def test_best_rate_of_each_optimiser_is_chosen(tmp_path: Path) -> None:
    own, path = experiment(), tmp_path / "rates.json"
    tables = {
        own.sweep_run(optimizer, rate): pd.DataFrame(
            {"valid_log_probability": [0.0, end], "train_log_probability": [0.0, -end]}
        )
        for optimizer, rate, end in (("sgd", 0.01, -3.0), ("ng-sgd", 0.01, -2.0), ("ng-sgd", 0.02, -1.0))
    }
    table = tuning(own, tables)
    assert table["chosen"].tolist() == [True, False, True]
    assert read_rates(path, own) is None
    write_rates(table, own, path)
    assert read_rates(path, own) == {"sgd": 0.01, "ng-sgd": 0.02}
    # A choice among other candidates or with other settings is not valid.
    assert read_rates(path, experiment(rates={"sgd": (0.01, 0.5), "ng-sgd": (0.01, 0.02)})) is None
    assert read_rates(path, experiment(settings={"corpus": "digits", "samples_per_iter": 9})) is None
    assert read_rates(path, experiment(base={"pnorm_input_dim": 9})) is None
    path.write_text('{"sgd": 3}')
    with pytest.raises(ConfigError, match="not the learning rates of a sweep"):
        read_rates(path, own)


def test_grid_has_a_run_for_each_point() -> None:
    runs = experiment().grid_runs({"sgd": 0.01, "ng-sgd": 0.02})
    assert len(runs) == 2 * (2 + 3)
    assert runs["paper-mini-ng-sgd-4-seed1"] == {
        "corpus": "digits",
        "optimizer": "ng-sgd",
        "initial_effective_lrate": 0.02,
        "final_effective_lrate": 0.002,
        "num_jobs_initial": 4,
        "num_jobs_final": 4,
        "seed": 1,
    }
    growing = runs["paper-mini-ng-sgd-growing-seed0"]
    assert (growing["num_jobs_initial"], growing["num_jobs_final"]) == (1, 4)


def test_only_the_first_method_has_runs_with_a_single_job() -> None:
    rates = {"average": (0.02,), "momentum": (0.01,)}
    own = experiment(rates=rates, methods={method: {} for method in rates}, growing=(), sweep={"num_jobs_final": 4})
    assert own.points() == [
        *(("average", jobs, seed) for jobs in (1, 4) for seed in range(2)),
        *(("momentum", 4, seed) for seed in range(2)),
    ]
    # Settings of the sweep override its default of one job.
    assert {run["num_jobs_final"] for run in own.sweep_runs().values()} == {4}


def test_rate_that_diverges_is_not_chosen() -> None:
    own = experiment(rates={"sgd": (0.01, 0.02), "ng-sgd": (0.01,)})
    ends = {("sgd", 0.01): float("nan"), ("sgd", 0.02): -3.0, ("ng-sgd", 0.01): -2.0}
    tables = {
        own.sweep_run(*point): pd.DataFrame({"valid_log_probability": [end], "train_log_probability": [end]})
        for point, end in ends.items()
    }
    assert tuning(own, tables)["chosen"].tolist() == [False, True, True]


def test_runs_of_the_paper_study_are_valid(tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text()) | paper()
    study = Study.from_config(config)
    assert study.rates(tmp_path) == {}
    for name, own in study.experiments.items():
        chosen = [{"method": m, "rate": r, "chosen": r == rates[0]} for m, rates in own.rates.items() for r in rates]
        write_rates(pd.DataFrame(chosen), own, tmp_path / name / "learning_rates.json")
    runs = study.runs(study.rates(tmp_path))
    settings = {name: value for name, value in config.items() if name not in KEYS} | {"runs": runs}
    assert run_settings(settings).keys() == runs.keys()
    # All runs with the same seed share their examples.
    assert len({s.egs_key() for s in run_settings(settings).values()}) == 2 * config["seeds"]


def test_parts_of_a_study_cover_its_grids() -> None:
    study = Study.from_config(paper())
    rates = {name: {m: r[0] for m, r in own.rates.items()} for name, own in study.experiments.items()}
    assert study.parts({}) == []
    assert {run for part in study.parts({"digits": rates["digits"]}) for run in part} == {
        *study.experiments["digits"].grid_runs(rates["digits"])
    }
    parts = study.parts(rates)
    runs = [run for part in parts for run in part]
    assert sorted(runs) == sorted(run for name, own in study.experiments.items() for run in own.grid_runs(rates[name]))
    assert len(parts) == 2 * 3
    assert all(len({run.rpartition("-")[2] for run in part}) == 1 for part in parts)


def test_settings_of_methods() -> None:
    own = experiment(methods={"heavy": {"optimizer": "ng-sgd", "outer_momentum": 0.9}}, rates={"heavy": (0.01,)})
    runs = own.grid_runs({"heavy": 0.01})
    assert {(run["optimizer"], run["outer_momentum"]) for run in runs.values()} == {("ng-sgd", 0.9)}


def test_settings_of_optimisers() -> None:
    own = experiment(optimizers={"ng-sgd": {"alpha": 1.0}})
    runs = own.sweep_runs() | own.grid_runs({"sgd": 0.01, "ng-sgd": 0.02})
    assert {(run["optimizer"], run.get("alpha")) for run in runs.values()} == {("sgd", None), ("ng-sgd", 1.0)}
    assert own.key() != experiment().key()


@pytest.mark.parametrize("name", ["paper", "outer"])
def test_configured_studies_are_valid(name: str) -> None:
    config = yaml.safe_load((ROOT / f"config/{name}.yaml").read_text())
    defaults = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    for own in Study.from_config(config).experiments.values():
        runs = own.sweep_runs() | own.grid_runs({method: rates[0] for method, rates in own.rates.items()})
        rest = {key: value for key, value in config.items() if key not in KEYS}
        assert len(run_settings(defaults | rest | {"runs": runs})) == len(runs)


def test_scale_changes_the_hours_but_not_the_size_of_iterations() -> None:
    one, ten = (Study.from_config(paper() | {"scale": scale}).experiments["synthetic"].settings for scale in (1, 10))
    assert ten["hours"] == 10 * one["hours"]
    assert ten["samples_per_iter"] == one["samples_per_iter"]
    scaled = Study.from_config(paper() | {"scale": 10})
    assert scaled.experiments["digits"] == Study.from_config(paper()).experiments["digits"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"jobs": (1,)}, "must contain 1 and a larger number"),
        ({"jobs": (2, 4)}, "must contain 1 and a larger number"),
        ({"rates": {"sgd": (), "ng-sgd": (0.1,)}}, "rates: sgd: empty"),
        ({"rates": {"sgd": (0.1,)}, "growing": ()}, "must contain sgd and ng-sgd"),
        ({"methods": {"plain": {}}}, "must have the same keys"),
        ({"growing": ("adam",)}, "adam has no entry in rates"),
        ({"optimizers": {"adam": {}}}, "optimizers: adam has no entry in rates"),
    ],
)
def test_experiments_without_a_possible_comparison_are_refused(changes: dict, message: str) -> None:
    experiment().check()
    with pytest.raises(ConfigError, match=message):
        experiment(**changes).check()


@pytest.mark.parametrize("wrong", [{"scale": 0}, {"seeds": 0}, {"seeds": None}, {"paper": {"x": {}}}, {"paper": []}])
def test_malformed_studies_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        Study.from_config(paper() | wrong)
