"""Tests of the outer step, which makes the next model from the average of the jobs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ngsgd.errors import ModelError, TrainingError
from ngsgd.network.storage import Arrays, Header, read_header, read_model, write_model
from ngsgd.training.average import end_iteration
from ngsgd.training.outer_step import OuterStep, apply_outer_step, job_weights, scale_change
from ngsgd.training.plan import AVERAGE, BEST

NAME = "components.affine.weight"


def model(path: Path, value: np.ndarray, history: dict) -> Path:
    header = Header(format=1, architecture=[{"name": "affine", "kind": "affine"}], history=history)
    write_model(path, {NAME: value.astype(np.float32)}, header)
    return path


def job(path: Path, value: np.ndarray, number: int, iteration: int, frames: int = 100, action: str = AVERAGE) -> Path:
    record = {
        "iteration": iteration,
        "job": number,
        "action": action,
        "frames": frames,
        "log_probability": -1.0,
        "max_change_share": {},
        "failure": None,
        "train_accuracy": 0.5,
    }
    return model(path, value, {"job": record})


class Chain:
    """Simulates iterations of jobs whose models differ from the last one by given changes."""

    def __init__(self, folder: Path, step: OuterStep) -> None:
        self.folder, self.step = folder, step
        self.x = 0
        rng = np.random.default_rng(0)
        model(folder / "0.safetensors", rng.normal(size=(3, 2)), {"iterations": []})

    def value(self) -> np.ndarray:
        return read_model(self.folder / f"{self.x}.safetensors")[0][NAME]

    def momentum(self, x: int) -> Path:
        return self.folder / "momenta" / f"{x}.safetensors"

    def iterate(self, *changes: np.ndarray, frames: tuple[int, ...] = (100, 100), action: str = AVERAGE) -> np.ndarray:
        before, f = self.value(), self.folder
        jobs = [
            job(f / f"job{n}.safetensors", before + change, n + 1, self.x, frames[n], action)
            for n, change in enumerate(changes)
        ]
        self.momentum(0).parent.mkdir(exist_ok=True)
        momenta = (self.momentum(self.x), self.momentum(self.x + 1)) if self.step.momentum else None
        after = f / f"{self.x + 1}.safetensors"
        end_iteration(jobs, f / f"{self.x}.safetensors", 1.0, after, f / "report.json", None, self.step, momenta)
        self.x += 1
        return self.value()


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("lrate", "momentum"), [(1.0, 0.0), (0.7, 0.9), (0.5, 0.0), (1.0, 0.75)])
def test_outer_steps_are_those_of_torch_sgd(tmp_path: Path, lrate: float, momentum: float, nesterov: bool) -> None:
    nesterov = nesterov and momentum > 0
    chain, rng = Chain(tmp_path, OuterStep(lrate, momentum, nesterov)), np.random.default_rng(1)
    W = torch.tensor(chain.value(), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([W], lr=lrate, momentum=momentum, nesterov=nesterov)
    for _ in range(5):
        changes = 0.1 * rng.normal(size=(2, 3, 2))
        found = chain.iterate(*changes)
        W.grad = -torch.tensor(changes.mean(axis=0))
        optimizer.step()
        assert found == pytest.approx(W.detach().numpy(), abs=1e-5)
    assert chain.momentum(5).exists() == (momentum > 0)


def test_iteration_that_takes_the_best_job_resets_momentum(tmp_path: Path) -> None:
    chain = Chain(tmp_path, OuterStep(1.0, 0.9))
    one = np.ones((3, 2))
    chain.iterate(one, one)
    before = chain.value()
    assert chain.iterate(one, one, action=BEST) == pytest.approx(before + 1.0)
    assert not chain.momentum(2).exists()
    before = chain.value()
    assert chain.iterate(one, one) == pytest.approx(before + 1.0)  # from V = 0
    assert chain.iterate(one, one) == pytest.approx(before + 1.0 + 1.9)


def test_momentum_that_is_missing_or_of_another_model_is_refused(tmp_path: Path) -> None:
    chain, one = Chain(tmp_path, OuterStep(1.0, 0.9)), np.ones((3, 2))
    chain.iterate(one, one)
    chain.iterate(one, one)
    kept = chain.momentum(2).read_bytes()
    chain.momentum(2).unlink()
    with pytest.raises(ModelError, match=r"2\.safetensors is missing; delete .*2\.safetensors, and those before"):
        chain.iterate(one, one)
    assert not (tmp_path / "3.safetensors").exists()
    chain.momentum(2).write_bytes(chain.momentum(1).read_bytes())
    with pytest.raises(ModelError, match="not the momentum of"):
        chain.iterate(one, one)
    chain.momentum(2).write_bytes(kept)
    chain.iterate(one, one)


def test_step_to_infinite_parameters_leaves_no_model(tmp_path: Path) -> None:
    chain = Chain(tmp_path, OuterStep(10.0, 0.9))
    with pytest.raises(TrainingError, match="lower outer_lrate"):
        chain.iterate(np.full((3, 2), 2e38), np.full((3, 2), 2e38))
    assert not (tmp_path / "1.safetensors").exists()
    assert not chain.momentum(1).exists()


def test_trust_region_bounds_each_component() -> None:
    before: Arrays = {
        "components.a.weight": np.full((2, 2), 3.0, np.float32),
        "components.a.bias": np.full(2, 4.0, np.float32),
        "components.b.weight": np.ones((1, 1), np.float32),
        "components.c.bias": np.zeros(1, np.float32),
    }
    average = {name: array + 1.0 for name, array in before.items()}
    after, velocity = apply_outer_step(before, average, {}, OuterStep(trust_region=0.1))
    assert velocity == {}
    moves = {name: after[name].astype(np.float64) - before[name] for name in before}
    length = np.sqrt(sum(np.square(moves[f"components.a.{p}"]).sum() for p in ("weight", "bias")))
    assert length == pytest.approx(0.1 * np.sqrt(4 * 9 + 2 * 16), rel=1e-5)
    assert np.ptp(np.concatenate([moves[f"components.a.{p}"].ravel() for p in ("weight", "bias")])) < 1e-6
    assert moves["components.b.weight"] == pytest.approx(0.1, rel=1e-5)
    assert moves["components.c.bias"] == 1.0
    wide, _ = apply_outer_step(before, average, {}, OuterStep(trust_region=10.0))
    assert all(np.array_equal(wide[name], average[name]) for name in average)


def test_statistics_and_new_layers_are_only_averaged() -> None:
    before: Arrays = {
        "components.a.weight": np.zeros(2, np.float32),
        "components.n.running_var": np.ones(2, np.float32),
    }
    average: Arrays = {name: array + 1.0 for name, array in before.items()} | {"components.new.weight": np.ones(2)}
    after, velocity = apply_outer_step(before, average, {}, OuterStep(0.5, 0.9))
    assert after["components.a.weight"].tolist() == [0.5, 0.5]
    assert after["components.n.running_var"].tolist() == [2.0, 2.0]
    assert after["components.new.weight"].tolist() == [1.0, 1.0]
    assert velocity.keys() == {"components.a.weight"}


def test_job_weights(tmp_path: Path) -> None:
    assert job_weights("frames", [100, 300]) == ([0.25, 0.75], 1.0)
    weights, factor = job_weights("rescaled", [100, 300])
    assert [factor * weight for weight in weights] == pytest.approx([1.0, 1 / 3])
    assert job_weights("frames", [7, 7]) == (None, 1.0)
    with pytest.raises(ModelError, match="on no frame"):
        job_weights("rescaled", [0, 1])
    change = np.ones((3, 2))
    for kind, expected in (("equal", 2.0), ("frames", 0.25 + 2.25), ("rescaled", 2.0)):
        (tmp_path / kind).mkdir()
        chain = Chain(tmp_path / kind, OuterStep(weights=kind))
        before = chain.value()
        # The second job has three times as many frames and a change three times as large.
        assert chain.iterate(change, 3 * change, frames=(100, 300)) == pytest.approx(before + expected, abs=1e-5)


def test_statistics_are_not_rescaled() -> None:
    before: Arrays = {"components.n.running_var": np.ones(1, np.float32), "components.a.bias": np.ones(1, np.float32)}
    average: Arrays = {name: np.full(1, 0.2, np.float32) for name in before}
    scaled = scale_change(before, average, 4 / 3)
    assert scaled["components.n.running_var"] == np.float32(0.2)
    assert scaled["components.a.bias"] == pytest.approx(1.0 - 0.8 * 4 / 3)


def test_job_trained_from_another_model_is_refused(tmp_path: Path) -> None:
    chain = Chain(tmp_path, OuterStep())
    own = {"iterations": [{"iteration": 0, "action": AVERAGE, "lost": [2]}]}
    model(tmp_path / "1.safetensors", np.zeros((3, 2)), {"iterations": [{"iteration": 0, "action": AVERAGE}]})
    record = read_header(job(tmp_path / "j", np.zeros((3, 2)), 1, 1))["history"]["job"]
    path = model(tmp_path / "j", np.ones((3, 2)), own | {"job": record})
    with pytest.raises(ModelError, match="trained from another model than"):
        end_iteration([path], tmp_path / "1.safetensors", 1.0, tmp_path / "2.safetensors", tmp_path / "r.json")
    assert chain.x == 0


def test_default_outer_step_gives_the_bytes_of_the_average(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    changes = rng.normal(size=(2, 3, 2))
    files = []
    for name, step in (("plain", OuterStep()), ("weights", OuterStep(weights="frames"))):
        (tmp_path / name).mkdir()
        chain = Chain(tmp_path / name, step)
        chain.iterate(*changes)
        files.append((tmp_path / name / "1.safetensors").read_bytes())
    assert files[0] == files[1]
    assert read_header(tmp_path / "plain/1.safetensors")["history"]["iterations"][0]["action"] == AVERAGE
