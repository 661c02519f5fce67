"""What becomes of a run's files when its settings or its data change.

Everything in a run's folder was made by one recipe: the settings and the data. A file that is there is therefore the
right one, and a call makes just those that are missing. When the recipe changes, the files of the old one are set
aside as a whole; when it changes back, they come back.
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

TRAINING = ".training"  # names the recipe that made what lies in the folder
SCORING = ".scoring"  # names the recipe that made those of these that tell how good models are
SCORED = {"diagnostics"}
ENDING = ".ending"  # names the recipe that made those of these that come after training
ENDED = {"plan.tsv", "final.safetensors", "combination.json", "metrics.tsv", "figures"}
EVALUATION = ".evaluation"  # names the recipe that made those of these that come after the final model
EVALUATED = {"settings.json", "decoding", "evaluation.json"}
SUPERSEDED = "superseded"
RECIPES = "recipe"  # folder with the recipe in force, in a file named after it


@dataclass(frozen=True)
class Recipe:
    """What is in force in a run's folder, as a file that stands for it.

    Attributes:
        run: with its settings.
        layout: of its examples, so that the plan can be told without looking at the data.
    """

    run: Run
    layout: Layout

    def write(self, path: Path) -> None:
        """Writes the recipe below its run's folder, as ``recipe/<key>.json``.

        Raises:
            OSError: the file cannot be written.
        """
        write_text(path, json.dumps({"layout": asdict(self.layout), "run": self.run.fields()}, indent=1) + "\n")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Recipe:
        """The recipe that `write` wrote.

        Raises:
            ConfigError: the file is missing or malformed.
        """
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(Run.from_fields(Path(path).parent.parent, fields["run"]), Layout(**fields["layout"]))
        except (OSError, ValueError, TypeError, KeyError) as e:
            raise ConfigError(f"{os.fspath(path)}: not a recipe ({e}); delete it and run again") from None


def activate_recipe(run: Run, info: CorpusInfo, plan: Sequence[Job]) -> None:
    """Sees that a run's folder holds nothing but what its settings and data made.

    Other files go to ``superseded/<their recipe>``, and those of this recipe come back from there. Nothing is copied;
    an interrupted call is completed by the next one.

    Args:
        run: the run, with its settings.
        info: of the corpus that it trains on.
        plan: of the run without extra epochs, which change nothing of what comes before them. It follows from settings
            and data, but another version may plan otherwise.

    Raises:
        OSError: a file cannot be moved.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    data = {"sha256": info.sha256, "silence": info.silence, "const_dim": info.const_dim, "counts": info.class_counts}
    training = run.settings.of_training() | {"data": data, "plan": plan}
    if run.origin is not None:
        training["origin"] = run.origin
    scoring = [training, run.settings.of_scoring()]
    ending = [scoring, run.settings.of_ending(), info.transition_model]
    # What was said stands in the corpus's folder, which is named after all of its source.
    evaluation = [ending, run.key()]
    _activate(run.folder, TRAINING, digest(training), lambda name: name not in (TRAINING, SUPERSEDED, RECIPES))
    _activate(run.folder, SCORING, digest(scoring), lambda name: name in SCORED)
    _activate(run.folder, ENDING, digest(ending), lambda name: name in ENDED)
    _activate(run.folder, EVALUATION, digest(evaluation), lambda name: name in EVALUATED)


def _activate(folder: Path, stamp: str, key: str, selects: Callable[[str], bool]) -> None:
    former = (folder / stamp).read_text(encoding="utf-8").strip() if (folder / stamp).exists() else "unknown"
    if former != key:
        _move(folder, folder / SUPERSEDED / former, selects)
        write_text(folder / stamp, key + "\n")
    aside = folder / SUPERSEDED / key
    if aside.exists():
        _move(aside, folder, selects)
        aside.rmdir()


def _move(source: Path, target: Path, selects: Callable[[str], bool]) -> None:
    """Moves some entries of a folder into another, replacing those of the same name."""
    for entry in sorted(source.iterdir()):
        if selects(entry.name):
            target.mkdir(parents=True, exist_ok=True)
            if (target / entry.name).is_dir():
                shutil.rmtree(target / entry.name)
            os.replace(entry, target / entry.name)
