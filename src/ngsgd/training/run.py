"""A run's settings and the paths of its files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ngsgd.data.egs import Layout, corpus_layout
from ngsgd.errors import ConfigError
from ngsgd.files import digest, write_text
from ngsgd.training.settings import Settings


@dataclass(frozen=True)
class Run:
    """A run's settings, and the paths of its files.

    Attributes:
        folder: of the run.
        settings: of the run.
        data: folder of the prepared corpus.
        examples: folder of the examples.
        origin: identifies the initial model; None if the run starts from a new network.
    """

    folder: Path
    settings: Settings
    data: Path
    examples: Path
    origin: str | None = None

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Run:
        """Opens a run by its folder; otherwise like `read`."""
        return cls.read(Path(folder) / "settings.json")

    @classmethod
    def read(cls, path: Path) -> Run:
        """Opens a run by the ``settings.json`` in its folder, which `write` wrote.

        Raises:
            ConfigError: the file is missing or malformed.
        """
        try:
            return cls.from_fields(path.parent, json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file; call snakemake, which makes it") from None
        except (OSError, ValueError, TypeError, KeyError) as e:
            raise ConfigError(f"{path}: not the settings of a run ({e}); delete it and run again") from None

    @classmethod
    def from_fields(cls, folder: Path, fields: dict[str, Any]) -> Run:
        """Makes a run from its folder and the dictionary that `fields` returned."""
        return cls(
            folder,
            Settings.from_values(fields["settings"]),
            Path(fields["data"]),
            Path(fields["examples"]),
            fields["origin"],
        )

    def fields(self) -> dict[str, Any]:
        """Returns everything but the folder, as a dictionary that JSON can hold."""
        return {
            "data": str(self.data),
            "examples": str(self.examples),
            "origin": self.origin,
            "settings": self.settings.values(),
        }

    def key(self) -> str:
        """Returns a digest of the settings and of the contents of the data and of the decoding graph."""
        return digest([self.fields(), self.settings.graph_key()])

    def models_key(self) -> str:
        """Returns a digest of the settings and data that the run's models depend on."""
        s = self.settings
        stages = [
            s.values_for_examples(),
            s.values_for_training(),
            s.values_for_scoring(),
            s.values_for_final_model(),
        ]
        return digest([str(self.data), self.origin, *stages])

    def write(self, path: Path) -> None:
        """Writes the ``settings.json`` that `read` reads.

        Raises:
            OSError: the file cannot be written.
        """
        write_text(path, json.dumps(self.fields(), indent=1) + "\n")

    def layout(self) -> Layout:
        """Returns how the examples are divided into archives.

        Raises:
            DataError: the corpus cannot be read.
        """
        return corpus_layout(self.data, self.settings.frames_per_eg, self.settings.samples_per_iter)

    @property
    def settings_file(self) -> Path:
        return self.folder / "settings.json"

    @property
    def plan_file(self) -> Path:
        return self.folder / "plan.tsv"

    @property
    def lost_jobs_file(self) -> Path:
        """The ledger of lost jobs."""
        return self.folder / "lost.tsv"

    @property
    def pruned_marker(self) -> Path:
        """A marker file that exists once models have been removed."""
        return self.folder / "pruned"

    def model_file(self, x: int) -> Path:
        """The model from which iteration x starts."""
        return self.folder / "models" / f"{x}.safetensors"

    def existing_models(self) -> set[int]:
        """The numbers of the models in the folder; files of other names, which people may have made, do not count."""
        return {int(match[1]) for match in _own_files(self.model_file(0).parent, r"(\d+)")}

    def existing_momenta(self) -> set[int]:
        """The numbers of the momenta in the folder, likewise."""
        return {int(match[1]) for match in _own_files(self.momentum_file(0).parent, r"(\d+)")}

    def existing_jobs(self) -> set[tuple[int, int]]:
        """Iteration and number of the jobs' models in the folder, likewise."""
        return {(int(m[1]), int(m[2])) for m in _own_files(self.job_file(0, 1).parent, r"(\d+)\.(\d+)")}

    def momentum_file(self, x: int) -> Path:
        """The momentum of the outer step that led to model x."""
        return self.folder / "momenta" / f"{x}.safetensors"

    def job_file(self, iteration: int, job: int) -> Path:
        """The model of one training job; jobs count from 1."""
        return self.folder / "jobs" / f"{iteration}.{job}.safetensors"

    def report_file(self, x: int) -> Path:
        """The report of the iteration that ended with model x."""
        return self.folder / "reports" / f"{x}.json"

    def diagnostics_file(self, x: int) -> Path:
        """The scores of model x."""
        return self.folder / "diagnostics" / f"{x}.json"

    def progress_file(self, iteration: int, job: int) -> Path:
        """The progress file of a training job; job 0 is the averaging at the end of the iteration."""
        return self.folder / "progress" / f"{iteration}.{job}.json"

    @property
    def final_model_file(self) -> Path:
        return self.folder / "final.safetensors"

    @property
    def combination_file(self) -> Path:
        """The report on how the final model was chosen."""
        return self.folder / "combination.json"

    def alignment_model_file(self, alignment: int) -> Path:
        """The model, with priors, that computes the k-th realignment."""
        return self.folder / "alignments" / f"{alignment}" / "model.safetensors"

    def aligned_labels_file(self, alignment: int, split: int, subset: str) -> Path:
        """The k-th realignment's labels of one split of a subset's utterances."""
        return (
            self.folder / "alignments" / f"{alignment}" / "splits" / f"{split}of{self.settings.num_splits}.{subset}.npy"
        )

    def labels_file(self, alignment: int, archive: int) -> Path | None:
        """The k-th realignment's labels of an archive; None for the archive's own labels (k = 0)."""
        return self.folder / "alignments" / f"{alignment}" / "archives" / f"{archive}.npy" if alignment else None

    def diagnostic_labels_file(self, alignment: int, subset: str) -> Path | None:
        """The k-th realignment's labels of the diagnostic examples; None for their own labels (k = 0)."""
        return self.folder / "diagnostics" / "labels" / f"{alignment}.{subset}.npy" if alignment else None

    @property
    def evaluation_file(self) -> Path:
        """The scores of the final model on the test set."""
        return self.folder / "evaluation.json"

    @property
    def graph_file(self) -> Path:
        """The decoding graph, relabelled to pdf-ids."""
        return self.folder / "decoding" / "graph.fst"

    def decoded_file(self, split: int) -> Path:
        """The decoded words of one split of the validation and test utterances."""
        return self.folder / "decoding" / f"{split}of{self.settings.num_splits}.json"

    @property
    def lm_weight_scores_file(self) -> Path:
        """The word error rates at each language-model weight."""
        return self.folder / "decoding" / "lm_weights.tsv"

    @property
    def transform_file(self) -> Path:
        return self.examples / "transform.npy"

    def archive_file(self, archive: int) -> Path:
        return self.examples / "archives" / f"{archive}.npy"

    @property
    def valid_file(self) -> Path:
        """Validation frames that every model is scored on."""
        return self.examples / f"valid-{self.settings.num_valid_frames}.npy"

    @property
    def train_subset_file(self) -> Path:
        """Training frames that every model is scored on."""
        return self.examples / f"train-{self.settings.num_train_subset_frames}.npy"

    @property
    def prior_file(self) -> Path:
        """Training frames over which the final model's posteriors are averaged."""
        return self.examples / f"prior-{self.settings.num_prior_frames}.npy"


def _own_files(folder: Path, stem: str) -> Iterator[re.Match[str]]:
    """Yields the matches of the models in a folder whose names are as a run writes them."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := re.fullmatch(rf"{stem}\.safetensors", path.name, re.ASCII):
            yield match
