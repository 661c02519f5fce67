import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ngsgd.study.analysis import curves, data_needed, level_of, on_grid, reached, speedups
from ngsgd.study.claims import claims, value_range
from ngsgd.study.grid import Experiment
from ngsgd.study.recorded import COLUMNS, compare_recorded, read


def experiment(**changes: object) -> Experiment:
    fields = {
        "name": "mini",
        "settings": {"corpus": "digits"},
        "sweep": {"num_epochs": 1},
        "methods": {},
        "optimizers": {},
        "rates": {"sgd": (0.01,), "ng-sgd": (0.01, 0.02)},
        "decay": 10.0,
        "jobs": (1, 4),
        "growing": ("ng-sgd",),
        "num_seeds": 2,
        "base": {},
        "recorded": None,
    }
    return Experiment(**(fields | changes))


def run_curves(
    method: str, jobs: int, seed: int, rate: float, epochs: float = 4.0, offset: float = 0.0
) -> pd.DataFrame:
    """Returns curves of a run whose objective approaches -1 - `offset` exponentially at `rate` per epoch."""
    data = np.linspace(0.0, epochs, 81)
    objective = -1.0 - 3.0 * np.exp(-rate * data) - offset
    return pd.DataFrame(
        {
            "method": method,
            "jobs": jobs,
            "seed": seed,
            "epochs": data,
            "epochs_per_job": data / jobs,
            "minutes": data,
            "valid_log_probability": objective,
            "train_log_probability": objective,
        }
    )


def test_curves_by_data_job_and_time() -> None:
    table = pd.DataFrame(
        {
            "epochs": [0.0, 0.1, 0.5, 0.9],
            "jobs": pd.array([1, 4, 4, None], dtype="Int64"),
            "seconds": [10.0, 20.0, 30.0, math.nan],
            "valid_log_probability": [-4.0, -3.0, -2.0, -1.0],
            "train_log_probability": [-4.0, -3.0, -2.0, -1.0],
        }
    )
    one = experiment(rates={"sgd": (0.01,)}, jobs=(4,), growing=(), num_seeds=1)
    found = curves(one, {one.grid_run("sgd", 4, 0): table}, turnaround=2.0)
    assert found["epochs_per_job"].tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert found["minutes"].tolist() == pytest.approx([0.0, 12 / 60, 34 / 60, 66 / 60])


def test_level_is_interpolated_between_models() -> None:
    own = pd.DataFrame({"epochs": [0.0, 1.0, 2.0, 3.0], "objective": [-4.0, -2.0, -1.0, -1.5]})
    assert reached(own, "objective", -1.5, "epochs") == pytest.approx(1.5)
    assert reached(own, "objective", -5.0, "epochs") == 0.0
    assert math.isnan(reached(own, "objective", -0.5, "epochs"))


def test_levels_start_at_the_end_of_the_first_epoch() -> None:
    own = run_curves("sgd", 1, 0, 1.0)
    first, best = -1.0 - 3.0 * math.exp(-1.0), -1.0 - 3.0 * math.exp(-4.0)
    assert level_of(own, "valid_log_probability", 0.8) == pytest.approx(first + 0.8 * (best - first))


def test_speedup_of_perfect_parallelism_is_the_number_of_jobs() -> None:
    both = [run_curves("ng-sgd", jobs, 0, 1.0) for jobs in (1, 4, 8)]
    growing = run_curves("ng-sgd", 8, 0, 1.0).assign(jobs=0)
    found = speedups(pd.concat([*both, growing]))
    assert found.groupby("jobs")["speedup"].mean().to_dict() == pytest.approx({4: 4.0, 8: 8.0})
    slower = speedups(pd.concat([both[0], run_curves("ng-sgd", 4, 0, 0.5, epochs=8.0)]))
    assert slower["speedup"].tolist() == pytest.approx([2.0, 2.0], rel=0.01)
    never = speedups(pd.concat([both[0], run_curves("ng-sgd", 4, 0, 1.0, offset=0.2)]))
    assert never[never["share"] == 0.95]["speedup"].isna().all()


def test_data_needed_for_the_final_level_of_another_method() -> None:
    pair = [run_curves("sgd", 1, 0, 1.0), run_curves("ng-sgd", 1, 0, 4.0)]
    assert data_needed(pd.concat(pair), "ng-sgd", "sgd").tolist() == pytest.approx([0.25], rel=0.01)
    worse = [run_curves("sgd", 1, 0, 1.0), run_curves("ng-sgd", 1, 0, 1.0, offset=0.1)]
    assert data_needed(pd.concat(worse), "ng-sgd", "sgd").isna().all()


def test_seeds_are_interpolated_on_a_common_grid() -> None:
    longer = pd.concat([run_curves("sgd", 1, 0, 1.0, epochs=4.0), run_curves("sgd", 1, 1, 1.0, epochs=3.0)])
    places, values = on_grid(longer, "epochs", "valid_log_probability", 31)
    assert places[-1] == 3.0
    assert values.shape == (2, 31)
    assert np.abs(values[0] - values[1]).max() < 0.002


def test_speedup_of_a_method_without_a_single_job_run_is_relative_to_the_first_method() -> None:
    all_curves = pd.concat(
        [run_curves("average", jobs, 0, 1.0) for jobs in (1, 8)] + [run_curves("momentum", 8, 0, 2.0)]
    )
    table = speedups(all_curves).set_index(["method", "share"])["speedup"]
    assert len(table) == 4
    assert table["average", 0.95] == pytest.approx(8.0)
    # Twice as fast as one job, and each of the 8 jobs processes an eighth of the data.
    assert table["momentum", 0.95] == pytest.approx(16.0, rel=0.02)


def outcome(sgd_loss: float, ng_loss: float) -> pd.DataFrame:
    rows = [
        {
            "method": method,
            "jobs": jobs,
            "seed": 0,
            "valid_log_probability": value,
            "train_log_probability": value,
        }
        for method, loss in (("sgd", sgd_loss), ("ng-sgd", ng_loss))
        for jobs, value in ((1, -1.0), (8, -1.0 - loss))
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("rates", "offset", "losses", "verdicts"),
    [
        ((4.0, 1.0), 0.0, (0.3, 0.1), [True, True, True, True]),
        ((1.5, 1.0), 0.0, (0.1, 0.3), [False, True, True, False]),
        ((4.0, 1.0), 0.2, (0.3, 0.1), [True, False, False, True]),
    ],
)
def test_verdicts(rates: tuple[float, float], offset: float, losses: tuple[float, float], verdicts: list[bool]) -> None:
    all_curves = pd.concat(
        [
            run_curves("sgd", 1, 0, rates[1]),
            run_curves("ng-sgd", 1, 0, rates[0]),
            *(run_curves("ng-sgd", jobs, 0, rates[0], offset=offset) for jobs in (4, 8)),
        ]
    )
    tables = {
        "curves": all_curves,
        "speedup": speedups(all_curves),
        "summary": outcome(*losses),
        "cost": pd.DataFrame(),
    }
    found = claims(tables)
    assert [claim.holds for claim in found] == verdicts


@pytest.mark.parametrize(("offset", "holds"), [(0.0, True), (0.04, True), (0.06, False), (-0.5, True)])
def test_comparison_with_recorded_numbers(offset: float, holds: bool, tmp_path: Path) -> None:
    """The recorded numbers are those of seed 0; seed 1 is worse by `offset`."""
    all_curves = pd.concat(
        [run_curves(m, 1, seed, 1.0, offset=offset * seed) for m in ("sgd", "ng-sgd") for seed in range(2)]
    )
    path = tmp_path / "recorded.tsv"
    lines = [f"{m}\t1\t{t}\t{-1.0 - 3.0 * math.exp(-t)}\t-2.0" for m in ("sgd", "ng-sgd") for t in (0.5, 2.0)]
    path.write_text("# A source.\n" + "\t".join(COLUMNS) + "\n" + "\n".join(lines) + "\n")
    recorded = read(str(path))
    assert recorded.source == "A source."
    table = compare_recorded(all_curves, recorded.table)
    assert len(table) == 8
    ahead = table["valid_log_probability"] - table["valid_log_probability_recorded"]
    np.testing.assert_allclose(ahead, -offset * table["seed"], atol=1e-3)
    tables = {"curves": all_curves, "speedup": pd.DataFrame([], columns=["method", "jobs", "share"]), "recorded": table}
    found = claims(tables | {"summary": outcome(0.3, 0.1), "cost": pd.DataFrame()})
    assert found[-1].holds == holds
    assert "4 points" in found[-1].evidence


def test_malformed_recorded_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recorded.tsv"
    path.write_text("method\tjobs\n")
    with pytest.raises(ValueError, match=r"recorded\.tsv: expected a line"):
        read(str(path))


def test_seeds_that_do_not_reach_the_level_are_counted() -> None:
    assert value_range(pd.Series([1.0, 3.0]), ".1f") == "2.0 (1.0 – 3.0)"
    assert value_range(pd.Series([1.0, math.nan, 3.0]), ".1f") == "not reached by 1 of 3 seeds"


def test_recovery_of_the_averaging_loss() -> None:
    rows = [
        {"method": method, "jobs": jobs, "seed": 0, "combined": value}
        for method, values in (("average", (-1.0, -1.4)), ("much", (-1.0, -1.1)), ("little", (-1.0, -1.3)))
        for jobs, value in zip((1, 8), values, strict=True)
    ]
    found = claims({"summary": pd.DataFrame(rows)})
    assert [(claim.text.split()[0], claim.evidence, claim.holds) for claim in found] == [
        ("much", "+0.300 of 0.400 nats per frame", True),
        ("little", "+0.100 of 0.400 nats per frame", False),
    ]
    nothing_lost = pd.DataFrame([row | {"combined": -1.0 + 0.01 * row["jobs"]} for row in rows])
    assert not any(claim.holds for claim in claims({"summary": nothing_lost}))
