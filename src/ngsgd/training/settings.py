"""The settings of a run. Each is declared once, here or in the module of its corpus; see `ngsgd.declare`.

`ngsgd.workflow.configuration` makes them from a configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ngsgd.data.corpus import CorpusInfo
from ngsgd.declare import Stage, declared, setting
from ngsgd.errors import ConfigError
from ngsgd.files import digest, expand_path, resolve_path
from ngsgd.network.splices import Splices, context, parse_splice_indexes

if TYPE_CHECKING:
    from ngsgd.data.corpora import CorpusSettings
    from ngsgd.network.topology import HiddenLayers

Optimizer = Literal["ng-sgd", "ng-sgd-simple", "sgd"]
Precision = Literal["float32", "tf32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """The network"""

    splice_indexes: str = setting(
        "layer0/-2:-1:0:1:2 layer1/-2:1 layer2/-3:3",
        "Frames of the layer below that each hidden layer sees, as `layer0/-2:-1:0:1:2 layer1/-2:1`. Layer 0 sees the "
        "features and must be contiguous around 0; layers that are not named see one frame.",
        stage="examples",
    )
    num_hidden_layers: int = setting(
        3, "Final number of hidden layers; training starts with one.", stage="training", minimum=1, maximum=100
    )
    add_layers_period: int = setting(
        2, "Number of iterations between insertions of hidden layers.", stage="training", minimum=1
    )
    nonlinearity: Literal["pnorm", "relu", "tanh", "sigmoid"] = setting(
        "pnorm", "Nonlinearity of the hidden layers.", stage="training"
    )
    pnorm_input_dim: int = setting(
        400, "Input dimension of the p-norm in a hidden layer.", stage="training", minimum=1, maximum=100_000
    )
    pnorm_output_dim: int = setting(
        80, "Output dimension of the p-norm in a hidden layer.", stage="training", minimum=1, maximum=100_000
    )
    hidden_dim: int = setting(
        256, "Dimension of a hidden layer with another nonlinearity.", stage="training", minimum=1, maximum=100_000
    )
    normalization: Literal["normalize", "batchnorm"] = setting(
        "normalize",
        "Normalisation after the nonlinearity: `normalize` scales each frame to root-mean-square 1; `batchnorm` "
        "normalizes each dimension over the minibatch, and its running statistics are averaged over jobs like "
        "parameters.",
        stage="training",
    )
    within_class_factor: float = setting(
        0.0001,
        "f in the scale sqrt((f + d)/(1 + d)) of the rows of the feature transform.",
        stage="examples", minimum=0, maximum=1,
    )  # fmt: skip
    lda_max_frames: int = setting(
        1_000_000,
        "Maximum number of training frames that the feature transform is estimated from.",
        stage="examples", minimum=1,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ExamplesSettings:
    """The examples"""

    frames_per_eg: int = setting(
        8,
        "Number of successive labels in an example; lowered if there is little data.",
        stage="examples", minimum=1, maximum=1000,
    )  # fmt: skip
    samples_per_iter: int = setting(
        4000,
        "Number of examples in an archive. A job trains on one archive at one of its label positions, so a smaller "
        "number makes iterations shorter and more numerous.",
        stage="examples", minimum=1,
    )  # fmt: skip
    egs_bits: Literal[8, 16, 32] = setting(
        32,
        "Bits of each number in the archives: 32; or 16 or 8, which take about 0.6 or 0.4 of the disk space. Each "
        "dimension of an example is then stored in equal steps from its minimum to its maximum, with an error of at "
        "most 1/131070 or 1/510 of that range, plus float32 rounding.",
        stage="examples",
    )
    num_splits: int = setting(
        2,
        "Number of parts in which a corpus is prepared, cut into examples, realigned and decoded, with one job for "
        "each. It does not change results.",
        stage="none", minimum=1, maximum=10_000, kaldi="nj",
    )  # fmt: skip
    num_valid_frames: int = setting(
        4000,
        "Number of validation frames that every model is scored on.",
        stage="scoring", minimum=1, kaldi="num-valid-frames-combine of get_egs2.sh",
    )  # fmt: skip
    num_train_subset_frames: int = setting(
        4000, "Number of training frames that every model is scored on.", stage="scoring", minimum=1
    )
    num_prior_frames: int = setting(
        10_000,
        "Number of training frames over which posteriors are averaged to give the priors of the final model and, with "
        "`realign_times`, of the models that realign.",
        stage="combination", minimum=1, kaldi="prior-subset-size",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The optimiser"""

    optimizer: Optimizer = setting(
        "ng-sgd",
        "`ng-sgd`: online natural gradient; `ng-sgd-simple`: natural gradient estimated from each minibatch alone; "
        "`sgd`: plain SGD.",
        stage="training",
    )
    alpha: float = setting(4.0, "Smoothing of the Fisher estimates with the identity.", stage="training", above=0)
    rank_in: int = setting(
        20,
        "Rank of the online Fisher estimate of an affine layer's input.",
        stage="training", minimum=1, kaldi="precondition-rank-in",
    )  # fmt: skip
    rank_out: int = setting(
        80,
        "Rank of the online Fisher estimate of the derivative with respect to an affine layer's output.",
        stage="training", minimum=1, kaldi="precondition-rank-out",
    )  # fmt: skip
    num_samples_history: float = setting(
        2000,
        "Time constant with which the online Fisher estimates forget earlier minibatches.",
        stage="training", above=0, unit="frames",
    )  # fmt: skip
    update_period: int = setting(
        4, "Number of minibatches between updates of the online Fisher estimates.", stage="training", minimum=1
    )
    max_change_per_sample: float = setting(
        0.075,
        "Maximum change of a layer's parameters in a minibatch, for each of its frames; 0 for no limit. It applies "
        "to every optimiser.",
        stage="training", minimum=0,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """The schedule"""

    initial_model: str | None = setting(
        None,
        "Model to start from instead of a new one: `.safetensors` (also the `results/<run>/final.safetensors` of "
        "another run of the same configuration) or Kaldi's `.mdl`. Its layers are kept, none are added, and "
        "averaging starts at once. Dimensions, classes and context must match the corpus.",
        stage="training", not_empty=True, kaldi="input-model of train_more2.sh",
    )  # fmt: skip
    num_epochs: float = setting(
        4, "Number of passes over the data.", stage="training", above=0, maximum=1_000_000, unit="epochs"
    )
    extra_epochs: float = setting(
        0,
        "Number of further passes at the final learning rate and number of jobs. Raising it extends a finished run "
        "without repeating any training.",
        stage="combination", minimum=0, maximum=1_000_000, unit="epochs",
    )  # fmt: skip
    lrate_schedule: str = setting(
        "exponential",
        "How the effective learning rate goes from its initial to its final value; the functions are in "
        "`training/lrate_schedules.py`.",
        stage="training",
    )
    initial_effective_lrate: float = setting(
        0.02,
        "Effective learning rate per frame at the start. The learning rate of a job is this times the number of jobs, "
        "because averaging N models divides a step by N.",
        stage="training", above=0,
    )  # fmt: skip
    final_effective_lrate: float = setting(
        0.002, "Effective learning rate per frame at the end.", stage="training", above=0
    )
    num_jobs_initial: int = setting(1, "Number of jobs in the first iteration.", stage="training", minimum=1)
    num_jobs_final: int = setting(
        4, "Number of jobs in the last iteration, with linear growth between.", stage="training", minimum=1
    )
    minibatch_size: int = setting(
        128,
        "Number of examples in a minibatch. It is halved in iteration 0 and where a layer has just been added.",
        stage="training", minimum=1, maximum=1_000_000,
    )  # fmt: skip
    realign_times: list[float] = setting(
        [],
        "Shares of the data, such as `[0.3, 0.6]`, after which all examples are relabelled by aligning each "
        "utterance's own sequence of states with the current model.",
        stage="training",
        schema={"type": "array", "items": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}},
    )
    max_log_probability_gap: float = setting(
        1.0,
        "Distance of a job's training log-probability below the median of the others above which its model is left "
        "out of the average.",
        stage="training", above=0, unit="nats per frame",
    )  # fmt: skip
    max_models_combine: int = setting(
        20,
        "Number of models at the end of training that the final model is chosen from; more if an epoch has more "
        "iterations.",
        stage="combination", minimum=1,
    )  # fmt: skip
    combination_decay: float | None = setting(
        None,
        "null: the final model is the average of the last models that is best on validation frames. A number below "
        "1: it is the exponential moving average of all of them, with this weight of each model relative to the next "
        "one.",
        stage="combination", above=0, below=1,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OuterStepSettings:
    """The outer step

    The change from the previous model to the average, Delta, is a step of an outer optimiser: V <- mu V + Delta, and
    the model changes by eta V. By default (eta 1, mu 0) the next model is the average itself.
    """

    averaging_rule: str = setting(
        "outer-step", "How the models of an iteration's jobs become the next model.", stage="training"
    )
    job_weights: Literal["equal", "frames", "rescaled"] = setting(
        "equal",
        "Weights of the jobs' models in the average: `equal`; `frames`, proportional to the frames that each job was "
        "trained on; `rescaled`, changes inversely proportional to them, so that jobs that processed less count as "
        "if they had processed as much.",
        stage="training",
    )
    outer_lrate: float = setting(
        1.0,
        "Outer learning rate eta; zeta of block momentum (BMUF), often 1 with an `outer_momentum` of 1 - 1/N.",
        stage="training", above=0, maximum=10,
    )  # fmt: skip
    outer_momentum: float = setting(
        0.0,
        "Outer momentum mu; 0 for none. V is stored in `momenta/`, next to `models/`.",
        stage="training", minimum=0, below=1,
    )  # fmt: skip
    outer_nesterov: bool = setting(
        False,
        "Whether the step is eta (Delta + mu V) instead of eta V; with eta 0.7 and mu 0.9 this is the outer step of "
        "DiLoCo.",
        stage="training",
    )
    outer_trust_region: float | None = setting(
        None,
        "Maximum length of each component's step relative to the length of its parameters; null for no limit.",
        stage="training", above=0,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DecodingSettings:
    """Decoding to words"""

    graph: str | None = setting(
        None,
        "Directory with `HCLG.fst` (of type const, as `mkgraph.sh` makes it) and `words.txt`; null for no decoding. "
        "For `corpus: kaldi` it is made with the model of the alignments. For `corpus: lhotse` with `transcripts: "
        "words` its input labels are the classes, counted from 1.",
        stage="evaluation", is_source=True,
    )  # fmt: skip
    beam: float = setting(
        15.0,
        "How far a path may be behind the best one.",
        stage="evaluation", above=0, unit="scaled log-likelihood",
    )  # fmt: skip
    max_active: int = setting(
        7000, "How many paths are followed at most.", stage="evaluation", minimum=21, maximum=2_147_483_647
    )
    min_lmwt: int = setting(
        7,
        "Lowest language-model weight that is tried; acoustic log-likelihoods are divided by it. The weight with the "
        "fewest errors on validation utterances is used for the test.",
        stage="evaluation", minimum=1, maximum=1000,
    )  # fmt: skip
    max_lmwt: int = setting(
        17,
        "Highest language-model weight that is tried; every integer between is tried, too.",
        stage="evaluation", minimum=1, maximum=1000,
    )  # fmt: skip
    word_ins_penalties: list[float] = setting(
        [0.0, 0.5, 1.0],
        "Word insertion penalties that are tried with each language-model weight: costs added for each word.",
        stage="evaluation", kaldi="word_ins_penalty of score.sh",
        schema={"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 1000}, "minItems": 1},
    )  # fmt: skip
    unscored_words: list[str] = setting(
        [],
        "Words that are removed from references and hypotheses before they are compared, such as "
        '`["<UNK>", "[noise]"]`.',
        stage="evaluation", kaldi="wer_hyp_filter and wer_ref_filter of score.sh",
        schema={"type": "array", "items": {"type": "string", "minLength": 1}},
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MachineSettings:
    """The machine"""

    threads: int = setting(
        1,
        "Number of threads of a training job. The last bits of sums depend on it, so it is part of the plan.",
        stage="training", minimum=1, maximum=10_000, kaldi="num-threads",
    )  # fmt: skip
    device: str = setting(
        "cpu", "`cpu`, or `cuda` to train on a GPU.", stage="training", pattern="^(cpu|cuda(:[0-9]+)?)$"
    )
    precision: Precision = setting(
        "float32",
        "Precision of the matrix products in training: `float32`; `tf32`, a faster GPU format with 10 instead of 23 "
        "mantissa bits; `bfloat16`, with 7, in the forward and backward pass, while parameters and NG-SGD stay "
        "float32.",
        stage="training",
    )
    seed: int = setting(
        0,
        "Seed of the parameters, of the order of the examples and of each job. Runs with the same seed see the same "
        "data in the same order.",
        stage="examples", minimum=0, maximum=9_223_372_036_854_775_807,
    )  # fmt: skip


#: The sections of a run's settings, in the order in which they are documented.
SECTIONS = (
    NetworkSettings,
    ExamplesSettings,
    OptimizerSettings,
    ScheduleSettings,
    OuterStepSettings,
    DecodingSettings,
    MachineSettings,
)


@dataclass(frozen=True, kw_only=True)
class Settings(
    MachineSettings,
    DecodingSettings,
    OuterStepSettings,
    ScheduleSettings,
    OptimizerSettings,
    ExamplesSettings,
    NetworkSettings,
):
    """All settings of one run, by the names of the configuration.

    Attributes:
        corpus: name of the corpus.
        corpus_values: the settings of the corpus by name; see `corpus_settings`.
    """

    corpus: str
    corpus_values: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Settings:
        """The settings of a run from values by name, as `values` returns them."""
        own = {name: values[name] for name in declared(cls)}
        rest = {name: value for name, value in values.items() if name not in own and name != "corpus"}
        return cls(**own, corpus=values["corpus"], corpus_values=rest)

    def values(self) -> dict[str, Any]:
        """All settings by name, those of the corpus included."""
        own = asdict(self)
        corpus_values: dict[str, Any] = own.pop("corpus_values")
        return own | corpus_values

    @property
    def corpus_settings(self) -> CorpusSettings:
        """The settings of the corpus, as its module declares them."""
        # Training jobs do not need the modules of the corpora.
        from ngsgd.data.corpora import corpus_settings

        return corpus_settings(self.corpus, self.corpus_values)

    def splices(self) -> Splices:
        return parse_splice_indexes(self.splice_indexes)

    def context(self) -> tuple[int, int]:
        """Frames before and after a frame that an example holds."""
        return context(self.splices())

    def hidden_layers(self) -> HiddenLayers:
        # Imports torch, which takes long; most users of the settings do not need it.
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
        """The path that a setting gives: as it is if it exists, else relative to ``experiment``; None if not set."""
        value = getattr(self, name)
        return None if value is None else resolve_path(expand_path(value), self._root)

    @property
    def _root(self) -> Path:
        return Path(expand_path(self.corpus_values["experiment"]))

    def graph_key(self) -> str:
        """A digest of the contents of the decoding graph."""
        from ngsgd.data.corpora import path_stamps

        path = self.path("graph")
        stamps = [] if path is None else path_stamps("graph", path, self._root, {}, ("HCLG.fst", "words.txt"))
        return digest(stamps)

    def check(self) -> None:
        """Checks that the settings match each other.

        Raises:
            ConfigError: they do not.
        """
        splices = self.splices()
        if len(splices) > self.num_hidden_layers:
            raise ConfigError(
                f"splice_indexes names layer{len(splices) - 1}, num_hidden_layers is {self.num_hidden_layers}"
            )
        if self.nonlinearity == "pnorm" and self.pnorm_input_dim % self.pnorm_output_dim:
            raise ConfigError(
                f"pnorm_output_dim {self.pnorm_output_dim} does not divide pnorm_input_dim {self.pnorm_input_dim}"
            )
        if self.num_jobs_initial > self.num_jobs_final:
            raise ConfigError(f"num_jobs_initial {self.num_jobs_initial} is above num_jobs_final {self.num_jobs_final}")
        if self.outer_nesterov and not self.outer_momentum:
            raise ConfigError("outer_nesterov: needs an outer_momentum above 0")
        if self.precision == "tf32" and not self.device.startswith("cuda"):
            raise ConfigError("precision: tf32 is a number format of GPUs; it needs device: cuda")
        has_words = self.corpus == "kaldi" or self.corpus_values.get("transcripts") == "words"
        if self.graph is not None and not has_words:
            raise ConfigError("graph: needs corpus: kaldi, or corpus: lhotse with transcripts: words")
        if self.min_lmwt > self.max_lmwt:
            raise ConfigError(f"min_lmwt {self.min_lmwt} is above max_lmwt {self.max_lmwt}")
        if self.word_ins_penalties != sorted(set(self.word_ins_penalties)):
            raise ConfigError(f"word_ins_penalties must rise, got {self.word_ins_penalties}")
        if self.realign_times != sorted(set(self.realign_times)):
            raise ConfigError(f"realign_times must rise, got {self.realign_times}")
        if self.final_effective_lrate > self.initial_effective_lrate:
            raise ConfigError(
                f"final_effective_lrate {self.final_effective_lrate} is above initial_effective_lrate "
                f"{self.initial_effective_lrate}"
            )
        self.corpus_settings.check()

    def check_sources(self) -> None:
        """Checks that the files and folders that settings name exist, before any job needs them.

        Raises:
            ConfigError: one does not, or cannot be what the setting says.
        """
        from ngsgd.data.corpora import check_exists

        self.corpus_settings.check_sources()
        if (graph := self.path("graph")) is not None:
            check_exists("graph", graph, self._root)
            for file in ("HCLG.fst", "words.txt"):
                if not (graph / file).exists():
                    raise ConfigError(f"graph: {graph} has no {file}; make the graph with mkgraph.sh")
            self.corpus_settings.check_words()

    def of_stages(self, *stages: Stage) -> dict[str, Any]:
        """The settings, apart from those of the corpus, that change the results of the given stages."""
        return {name: getattr(self, name) for name, one in declared(type(self)).items() if one.stage in stages}

    def values_for_corpus(self) -> dict[str, Any]:
        """The settings on which the prepared corpus depends, in addition to the contents of its source."""
        return {"corpus": self.corpus} | self.corpus_values

    def values_for_examples(self) -> dict[str, Any]:
        """The settings on which the examples depend, in addition to those of the corpus."""
        return self.of_stages("examples")

    def values_for_training(self) -> dict[str, Any]:
        """The settings on which the jobs' models depend, in addition to the data: a change makes them again."""
        values = {"corpus": self.corpus} | self.of_stages("examples", "training")
        if self.realign_times:  # the models that realign have priors
            values["num_prior_frames"] = self.num_prior_frames
        del values["initial_model"]  # its contents count instead; see `Run.origin`
        return values

    def values_for_scoring(self) -> dict[str, Any]:
        """The settings on which the diagnostics depend, in addition to those of training."""
        return self.of_stages("scoring")

    def values_for_final_model(self) -> dict[str, Any]:
        """The settings on which the length of the plan and the final model depend, in addition to the others."""
        return self.of_stages("combination")

    def data_key(self) -> str:
        """Name of the prepared corpus, which runs share if this is the same."""
        from ngsgd.data.corpora import corpus_key

        return corpus_key(self.values_for_corpus())

    def egs_key(self) -> str:
        """Name of the examples, which runs share if this is the same."""
        return f"{self.corpus}-{digest([self.data_key(), self.values_for_examples()])}"


def check_corpus(settings: Settings, info: CorpusInfo) -> None:
    """Checks that a prepared corpus can be trained on.

    Raises:
        ConfigError: it has a single class.
    """
    if np.count_nonzero(info.class_counts) < 2:
        raise ConfigError(f"corpus {settings.corpus}: all training frames are of one class")
