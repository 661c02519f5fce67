from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ngsgd.data.corpus import CorpusInfo
from ngsgd.training import recipe
from ngsgd.training.plan import AVERAGE, Job
from ngsgd.training.run import Run

DATA = CorpusInfo(
    dim=3, class_counts=[1, 2], num_utterances={}, num_frames={}, sha256={"train": "a hash"}, silence=[], dropped={},
    words=[],
)  # fmt: skip
PLAN = [Job(0, 1, 0, 0, 0.1, 128, 1, 7, AVERAGE)]


def activate_recipe(folder: Path, settings, data=DATA, plan=PLAN, source: str = "digits-1") -> None:
    recipe.activate_recipe(Run(folder, settings, Path("results/data", source), Path("results/egs/e")), data, plan)


@pytest.fixture
def one(make_settings):
    return make_settings(seed=1)


@pytest.fixture
def two(make_settings):
    return make_settings(seed=2)


def put(run: Path, text: str) -> None:
    for name in ("models/1", "diagnostics/1", "final.safetensors"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(text)


def found(run: Path) -> list[str]:
    names = ("models/1", "diagnostics/1", "final.safetensors")
    return [(run / name).read_text() if (run / name).exists() else "" for name in names]


def test_files_of_another_recipe_are_set_aside_and_come_back(tmp_path: Path, one, two) -> None:
    activate_recipe(tmp_path, one)
    put(tmp_path, "one")
    activate_recipe(tmp_path, one)
    assert found(tmp_path) == ["one"] * 3
    activate_recipe(tmp_path, two)
    assert found(tmp_path) == [""] * 3
    put(tmp_path, "two")
    activate_recipe(tmp_path, one)
    assert found(tmp_path) == ["one"] * 3
    activate_recipe(tmp_path, two)
    assert found(tmp_path) == ["two"] * 3
    activate_recipe(tmp_path, two, data=dataclasses.replace(DATA, sha256={"train": "another hash"}))
    assert found(tmp_path) == [""] * 3
    activate_recipe(tmp_path, two, data=dataclasses.replace(DATA, silence=[0]))
    assert found(tmp_path) == [""] * 3
    # The same frames from another source, which may say other words: they are scored again.
    activate_recipe(tmp_path, two)
    (tmp_path / "evaluation.json").write_text("two")
    activate_recipe(tmp_path, two, source="digits-2")
    assert found(tmp_path) == ["two"] * 3
    assert not (tmp_path / "evaluation.json").exists()
    activate_recipe(tmp_path, two)
    assert (tmp_path / "evaluation.json").exists()
    activate_recipe(tmp_path, two)
    assert found(tmp_path) == ["two"] * 3
    activate_recipe(tmp_path, two, plan=[PLAN[0]._replace(seed=8)])
    assert found(tmp_path) == [""] * 3


def test_other_scoring_keeps_the_models_of_training(tmp_path: Path, make_settings, one) -> None:
    few = make_settings(seed=1, num_valid_frames=10)
    activate_recipe(tmp_path, one)
    put(tmp_path, "one")
    activate_recipe(tmp_path, few)
    assert found(tmp_path) == ["one", "", ""]
    activate_recipe(tmp_path, one)
    assert found(tmp_path) == ["one"] * 3


def test_scores_do_not_come_back_to_models_that_they_are_not_of(tmp_path: Path, make_settings, one, two) -> None:
    few = {"num_valid_frames": 10}
    activate_recipe(tmp_path, one)
    put(tmp_path, "one")
    activate_recipe(tmp_path, make_settings(seed=1, **few))  # sets the scores of seed 1 aside
    activate_recipe(tmp_path, two)
    assert found(tmp_path) == [""] * 3


@pytest.mark.parametrize("moves", range(12))
def test_an_interruption_loses_and_mixes_nothing(
    tmp_path: Path, moves: int, one, two, monkeypatch: pytest.MonkeyPatch
) -> None:
    activate_recipe(tmp_path, two)
    put(tmp_path, "two")
    activate_recipe(tmp_path, one)
    put(tmp_path, "one")
    left = moves
    replace = recipe.os.replace

    def breaking(source, target) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(recipe.os, "replace", breaking)
        try:
            activate_recipe(tmp_path, two)
            assert moves > 8, "the interruptions cover all of it"
        except KeyboardInterrupt:
            pass
    activate_recipe(tmp_path, two)
    assert found(tmp_path) == ["two"] * 3
    activate_recipe(tmp_path, one)
    assert found(tmp_path) == ["one"] * 3


def test_files_of_nobody_knows_what_are_set_aside(tmp_path: Path, one) -> None:
    put(tmp_path, "found")
    activate_recipe(tmp_path, one)
    assert found(tmp_path) == [""] * 3
    assert (tmp_path / "superseded" / "unknown" / "models/1").read_text() == "found"
