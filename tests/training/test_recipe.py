from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ngsgd.data.corpus import CorpusInfo
from ngsgd.training import recipe
from ngsgd.training.plan import AVERAGE, Job
from ngsgd.training.run import Run

DATA = CorpusInfo(
    dim=3, class_counts=[1, 2], num_utterances={}, num_frames={}, sha256={"train": "a hash"}, dropped={},
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


def write_files(run: Path, text: str) -> None:
    for name in ("models/1", "diagnostics/1", "final.safetensors"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(text)


def contents(run: Path) -> list[str]:
    names = ("models/1", "diagnostics/1", "final.safetensors")
    return [(run / name).read_text() if (run / name).exists() else "" for name in names]


def test_files_of_another_recipe_are_set_aside_and_restored(tmp_path: Path, one, two) -> None:
    activate_recipe(tmp_path, one)
    write_files(tmp_path, "one")
    activate_recipe(tmp_path, one)
    assert contents(tmp_path) == ["one"] * 3
    activate_recipe(tmp_path, two)
    assert contents(tmp_path) == [""] * 3
    write_files(tmp_path, "two")
    activate_recipe(tmp_path, one)
    assert contents(tmp_path) == ["one"] * 3
    activate_recipe(tmp_path, two)
    assert contents(tmp_path) == ["two"] * 3
    activate_recipe(tmp_path, two, data=dataclasses.replace(DATA, sha256={"train": "another hash"}))
    assert contents(tmp_path) == [""] * 3
    activate_recipe(tmp_path, two, data=dataclasses.replace(DATA, const_dim=1))
    assert contents(tmp_path) == [""] * 3
    # The same frames from another source may have other words, so only the evaluation is repeated.
    activate_recipe(tmp_path, two)
    (tmp_path / "evaluation.json").write_text("two")
    activate_recipe(tmp_path, two, source="digits-2")
    assert contents(tmp_path) == ["two"] * 3
    assert not (tmp_path / "evaluation.json").exists()
    activate_recipe(tmp_path, two)
    assert (tmp_path / "evaluation.json").exists()
    activate_recipe(tmp_path, two)
    assert contents(tmp_path) == ["two"] * 3
    activate_recipe(tmp_path, two, plan=[PLAN[0]._replace(seed=8)])
    assert contents(tmp_path) == [""] * 3


def test_changed_scoring_settings_keep_the_trained_models(tmp_path: Path, make_settings, one) -> None:
    few = make_settings(seed=1, num_valid_frames=10)
    activate_recipe(tmp_path, one)
    write_files(tmp_path, "one")
    activate_recipe(tmp_path, few)
    assert contents(tmp_path) == ["one", "", ""]
    activate_recipe(tmp_path, one)
    assert contents(tmp_path) == ["one"] * 3


def test_scores_are_not_restored_for_other_models(tmp_path: Path, make_settings, one, two) -> None:
    few = {"num_valid_frames": 10}
    activate_recipe(tmp_path, one)
    write_files(tmp_path, "one")
    activate_recipe(tmp_path, make_settings(seed=1, **few))  # sets the scores of seed 1 aside
    activate_recipe(tmp_path, two)
    assert contents(tmp_path) == [""] * 3


@pytest.mark.parametrize("moves", range(12))
def test_interrupted_activation_neither_loses_nor_mixes_files(
    tmp_path: Path, moves: int, one, two, monkeypatch: pytest.MonkeyPatch
) -> None:
    activate_recipe(tmp_path, two)
    write_files(tmp_path, "two")
    activate_recipe(tmp_path, one)
    write_files(tmp_path, "one")
    moves_left = moves
    replace = recipe.os.replace

    def replace_until_interrupted(source, target) -> None:
        nonlocal moves_left
        if moves_left == 0:
            raise KeyboardInterrupt
        moves_left -= 1
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(recipe.os, "replace", replace_until_interrupted)
        try:
            activate_recipe(tmp_path, two)
            assert moves > 8, "the interruptions cover every move"
        except KeyboardInterrupt:
            pass
    activate_recipe(tmp_path, two)
    assert contents(tmp_path) == ["two"] * 3
    activate_recipe(tmp_path, one)
    assert contents(tmp_path) == ["one"] * 3


def test_files_of_an_unknown_recipe_are_set_aside(tmp_path: Path, one) -> None:
    write_files(tmp_path, "unknown")
    activate_recipe(tmp_path, one)
    assert contents(tmp_path) == [""] * 3
    assert (tmp_path / "superseded" / "unknown" / "models/1").read_text() == "unknown"
