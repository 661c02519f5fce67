"""Recipes: keep the files in a run's folder consistent with its settings and data.

All files in a run's folder were made by one recipe, which is the settings and the data. An existing file is therefore
valid, and a call makes only the missing ones. When the recipe changes, the old recipe's files move to ``superseded/``;
when it changes back, they move back.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ngsgd.data.corpus import CorpusInfo
from ngsgd.data.egs import Layout
from ngsgd.errors import ConfigError
from ngsgd.files import digest, write_text
from ngsgd.training.plan import Job
from ngsgd.training.run import Run

# Each stamp file holds the digest of the recipe that made a part of the folder.
TRAINING_STAMP = ".training"  # the whole folder
SCORING_STAMP = ".scoring"  # the diagnostics of the models
SCORING_FILES = {"diagnostics"}
FINAL_MODEL_STAMP = ".ending"  # the plan, the final model and the metrics
FINAL_MODEL_FILES = {"plan.tsv", "final.safetensors", "combination.json", "metrics.tsv", "figures"}
EVALUATION_STAMP = ".evaluation"  # the evaluation of the final model
EVALUATION_FILES = {"settings.json", "decoding", "evaluation.json"}
SUPERSEDED = "superseded"
RECIPES = "recipe"  # folder with the active recipe, in a file named after its key


@dataclass(frozen=True)
class Recipe:
    """The active recipe of a run's folder, which rules take as an input file.

    Attributes:
        run: the run, with its settings.
        layout: of the examples, so that the plan can be made without reading the data.
    """

    run: Run
    layout: Layout

    def write(self, path: Path) -> None:
        """Writes the recipe to ``recipe/<key>.json`` in the run's folder.

        Raises:
            OSError: the file cannot be written.
        """
        write_text(path, json.dumps({"layout": asdict(self.layout), "run": self.run.fields()}, indent=1) + "\n")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Recipe:
        """Reads a recipe that `write` wrote.

        Raises:
            ConfigError: the file is missing or malformed.
        """
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(Run.from_fields(Path(path).parent.parent, fields["run"]), Layout(**fields["layout"]))
        except (OSError, ValueError, TypeError, KeyError) as e:
            raise ConfigError(f"{os.fspath(path)}: not a recipe ({e}); delete it and run again") from None


def activate_recipe(run: Run, info: CorpusInfo, plan: Sequence[Job]) -> None:
    """Makes a run's folder hold only files of the current recipe.

    Files of another recipe move to ``superseded/<digest>``, and those of the current one move back from there. Nothing
    is copied; the next call completes an interrupted one.

    Args:
        run: the run, with its settings.
        info: of the corpus that it trains on.
        plan: of the run, without extra epochs, since they do not change the jobs before them. It is part of the recipe
            because another version of ngsgd may plan differently.

    Raises:
        OSError: a file cannot be moved.
    """
    settings = run.settings
    run.folder.mkdir(parents=True, exist_ok=True)
    data = {"sha256": info.sha256, "const_dim": info.const_dim, "counts": info.class_counts}
    training = settings.values_for_training() | {"data": data, "plan": plan}
    if run.origin is not None:
        training["origin"] = run.origin
    scoring = [training, settings.values_for_scoring()]
    ending = [scoring, settings.values_for_final_model(), info.transition_model]
    # The run's key covers the references, since the corpus's folder is named after a digest of its source.
    evaluation = [ending, run.key()]
    _activate(
        run.folder, TRAINING_STAMP, digest(training), lambda name: name not in (TRAINING_STAMP, SUPERSEDED, RECIPES)
    )
    _activate(run.folder, SCORING_STAMP, digest(scoring), lambda name: name in SCORING_FILES)
    _activate(run.folder, FINAL_MODEL_STAMP, digest(ending), lambda name: name in FINAL_MODEL_FILES)
    _activate(run.folder, EVALUATION_STAMP, digest(evaluation), lambda name: name in EVALUATION_FILES)


def _activate(folder: Path, stamp: str, key: str, selects: Callable[[str], bool]) -> None:
    previous = (folder / stamp).read_text(encoding="utf-8").strip() if (folder / stamp).exists() else "unknown"
    if previous != key:
        _move(folder, folder / SUPERSEDED / previous, selects)
        write_text(folder / stamp, key + "\n")
    superseded = folder / SUPERSEDED / key
    if superseded.exists():
        _move(superseded, folder, selects)
        superseded.rmdir()


def _move(source: Path, target: Path, selects: Callable[[str], bool]) -> None:
    """Moves the selected entries of a folder into another, replacing entries of the same name."""
    for entry in sorted(source.iterdir()):
        if selects(entry.name):
            target.mkdir(parents=True, exist_ok=True)
            if (target / entry.name).is_dir():
                shutil.rmtree(target / entry.name)
            os.replace(entry, target / entry.name)
