"""The steps of the rules: what each reads and writes, and which of the files it reads Snakemake must make first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ngsgd.data.corpus import SUBSET_FILES, SUBSETS
from ngsgd.training.call_settings import CallSettings
from ngsgd.training.run import Run
from ngsgd.training.settings import Settings
from ngsgd.workflow.plans import Plans
from ngsgd.workflow.runs import initial_model_path, recipe_path
from ngsgd.workflow.snakemake_call import SnakemakeCall

CORPUS_FILES = [f"{subset}.{file}" for subset in SUBSETS for file in SUBSET_FILES]

#: A file of each rule of training that follows from another one. Where one of these rules is forced, everything is made
#: again. The rules' names may differ: a module can have a prefix for them.
TRAINING_FILES = (
    "results/{run}/recipe/0.json",
    "results/{run}/plan.tsv",
    "results/{run}/models/0.safetensors",
    "results/{run}/jobs/0.1.safetensors",
    "results/{run}/models/1.safetensors",
    "results/{run}/alignments/1/model.safetensors",
    "results/{run}/alignments/1/splits/0of1.train.npy",
    "results/{run}/alignments/1/archives/0.npy",
)

#: One or several paths of a step: a pattern with the rule's wildcards, or a function of them.
Paths = str | Callable[[Any], str | list[str]]


@dataclass(frozen=True)
class Step:
    """The files that one rule reads and writes, declared once for its ``input``, ``output`` and ``params``.

    A rule names ``STEP.missing`` as its input, ``**STEP.writes`` as its output and ``**STEP.params`` as its params, and
    its command takes every path from ``output`` and ``params``. Snakemake's own way, all that is read as ``input``,
    does not fit: all files of a run belong to one recipe (see `ngsgd.training.recipe`), so that a file that exists is
    the right one, but Snakemake would regard it as out of date as soon as one of its inputs has been made again, though
    with the same bytes. So Snakemake gets only those inputs that do not exist, and only if an output does not exist.
    Where everything is forced, or a rule of training, it gets all of them.

    Attributes:
        plans: the plans of the runs.
        call: the call of Snakemake.
        reads: paths of the files that the step reads, by name.
        writes: patterns of the outputs, by name.
        updates: paths of files that the step writes, perhaps not for the first time, and that are no outputs.
        follows_final: whether the step reads the final model. That one may be made again from other candidates; then
            the step runs again as well.
    """

    plans: Plans
    call: SnakemakeCall
    reads: Mapping[str, Paths]
    writes: Mapping[str, str]
    updates: Mapping[str, Paths]
    follows_final: bool = False

    def missing(self, wildcards: Any) -> list[str]:
        """The input function: the files that Snakemake has to make before the step."""
        self.plans.plan_for(wildcards.run)  # a new recipe sets the files of the former one aside
        if self.call.forces_all or self._training_is_forced(wildcards.run):
            return self._read_paths(wildcards)
        outputs = [pattern.format(**wildcards) for pattern in self.writes.values()]
        final = f"results/{wildcards.run}/final.safetensors" if self.follows_final else None
        is_done = not any(map(self._is_wanted, outputs)) and (final is None or _is_newer(outputs[0], final))
        if is_done and not (self.call.forces_targets or self.call.forces_rule_of(outputs[0])):
            return [final] if final else []
        return [path for path in self._read_paths(wildcards) if path == final or self._is_wanted(path)]

    @property
    def params(self) -> dict[str, Callable[[Any, Any], str | list[str]]]:
        """The functions under ``params`` for all paths but those of the outputs.

        Each takes ``output``, for which Snakemake regards its value as derived: it is not stored with the output, and a
        change of it (another job was lost, say) does not make the output again.
        """
        return {name: _derived(paths) for name, paths in {**self.reads, **self.updates}.items()}

    def _read_paths(self, wildcards: Any) -> list[str]:
        values = [_evaluate(paths, wildcards) for paths in self.reads.values()]
        return [path for value in values for path in ([value] if isinstance(value, str) else value)]

    def _training_is_forced(self, run: str) -> bool:
        if not self.call.forced:
            return False
        return any(self.call.forces_rule_of(path.format(run=run)) for path in TRAINING_FILES)

    def _is_wanted(self, path: str) -> bool:
        return path in self.call.forced or not Path(path).exists()


def _evaluate(paths: Paths, wildcards: Any) -> str | list[str]:
    return paths.format(**wildcards) if isinstance(paths, str) else paths(wildcards)


def _derived(paths: Paths) -> Callable[[Any, Any], str | list[str]]:
    def param(wildcards: Any, output: Any) -> str | list[str]:
        return _evaluate(paths, wildcards)

    return param


def _is_newer(output: str, final: str) -> bool:
    return Path(final).exists() and Path(final).stat().st_mtime <= Path(output).stat().st_mtime


def _not_none(paths: Iterable[Path | None]) -> list[str]:
    return [str(path) for path in paths if path is not None]


class Inputs:
    """The functions that rules name under ``input``, and the paths in their steps that depend on more than wildcards.

    Args:
        runs: the runs by name.
        plans: their plans.
        call: the call of Snakemake.
        execution: the settings of the call.
        corpora: for each prepared corpus the settings of a run that uses it.
        examples: for each set of examples the settings of a run that uses it.
    """

    def __init__(
        self,
        runs: Mapping[str, Run],
        plans: Plans,
        call: SnakemakeCall,
        execution: CallSettings,
        corpora: Mapping[str, Settings],
        examples: Mapping[str, Settings],
    ) -> None:
        self.runs, self.plans, self.call, self.execution = runs, plans, call, execution
        self._corpora, self._examples = corpora, examples
        # Found when the call starts: a graph that changes afterwards is not that of the recipe.
        graphs = {run.settings.path("graph"): run for run in runs.values() if run.settings.graph}
        self._graph_keys = {path: run.settings.graph_key() for path, run in graphs.items()}

    def step(
        self,
        reads: Mapping[str, Paths],
        writes: Mapping[str, str],
        updates: Mapping[str, Paths] | None = None,
        *,
        follows_final: bool = False,
    ) -> Step:
        """Declares what a rule reads and writes; see `Step`."""
        return Step(self.plans, self.call, reads, writes, updates or {}, follows_final)

    # The corpus.

    def part_infos(self, wildcards: Any) -> list[str]:
        """The descriptions of the parts in which a corpus is prepared."""
        num = self._corpora[wildcards.data].num_splits
        return [f"results/data/{wildcards.data}/parts/{k}of{num}/corpus.json" for k in range(num)]

    def part_files(self, wildcards: Any) -> list[str]:
        """The other files of these parts."""
        return [info.replace("corpus.json", file) for info in self.part_infos(wildcards) for file in CORPUS_FILES]

    def corpus(self, wildcards: Any) -> str:
        """The description of a run's corpus; its other files are next to it."""
        return f"{self.runs[wildcards.run].data}/corpus.json"

    # The examples.

    def corpus_of_examples(self, wildcards: Any) -> str:
        return f"results/data/{self._examples[wildcards.egs].data_key()}/corpus.json"

    def distributed(self, wildcards: Any) -> list[str]:
        """The files in which the splits of the utterances lie as examples, by archive."""
        num = self._examples[wildcards.egs].num_splits
        return [f"results/egs/{wildcards.egs}/distributed/{k}of{num}.npy" for k in range(num)]

    def diagnostic_examples(self, wildcards: Any) -> list[str]:
        """The validation and the training frames that every model is scored on."""
        run = self.runs[wildcards.run]
        return [str(run.valid_file), str(run.train_subset_file)]

    def valid(self, wildcards: Any) -> str:
        return str(self.runs[wildcards.run].valid_file)

    def prior(self, wildcards: Any) -> str:
        return str(self.runs[wildcards.run].prior_file)

    # Training.

    def recipe(self, wildcards: Any) -> str:
        return recipe_path(self.runs[wildcards.run])

    def origin(self, wildcards: Any) -> str:
        """The initial model of the settings, or the transform with which a new network begins."""
        run = self.runs[wildcards.run]
        return str(initial_model_path(run.settings) or run.transform_file)

    def archive(self, wildcards: Any) -> str:
        """The archive of a training job."""
        return str(self.runs[wildcards.run].archive_file(self.plans.job(wildcards).archive))

    def labels(self, wildcards: Any) -> list[str]:
        """The file with the labels of this archive; none before the first realignment."""
        run, job = self.runs[wildcards.run], self.plans.job(wildcards)
        archives = [job.archive]
        if self.execution.min_jobs is not None and self.plans.starts_alignment(wildcards.run, job.iteration):
            # The archives of lost jobs may have to be trained on with the new labels, too.
            archives += [a for a in range(self.plans.num_archives(wildcards.run)) if a != job.archive]
        return _not_none(run.labels_file(job.alignment, archive) for archive in archives)

    def jobs(self, wildcards: Any) -> list[str]:
        """The models of the jobs of the iteration that ends with model ``next``, without those known as lost."""
        x = int(wildcards.next) - 1
        lost = self.plans.lost(wildcards.run, x)
        run, jobs = self.runs[wildcards.run], self.plans.iteration(wildcards.run, x)
        return [str(run.job_file(x, job.job)) for job in jobs if job.job not in lost]

    def previous_model(self, wildcards: Any) -> str:
        """The model from which the iteration started that ends with model ``next``."""
        return str(self.runs[wildcards.run].model_file(int(wildcards.next) - 1))

    def momenta(self, wildcards: Any) -> list[str]:
        """The momentum of the outer step before and after this iteration."""
        run, x = self.runs[wildcards.run], int(wildcards.next)
        return [str(run.momentum_file(x - 1)), str(run.momentum_file(x))]

    def previous_progress(self, wildcards: Any) -> str:
        """The progress file of the averaging at the end of this iteration."""
        return str(self.runs[wildcards.run].progress_file(int(wildcards.next) - 1, 0))

    def diagnostic_labels(self, wildcards: Any) -> list[str]:
        """The labels of the examples that a model is scored on; none before the first realignment."""
        run = self.runs[wildcards.run]
        alignment = self.plans.alignment_of_model(wildcards.run, int(wildcards.iteration))
        return _not_none(run.diagnostic_labels_file(alignment, subset) for subset in ("valid", "train"))

    # Realignment.

    def model_before_alignment(self, wildcards: Any) -> str:
        x = self.plans.realignment(wildcards.run, int(wildcards.alignment))
        return str(self.runs[wildcards.run].model_file(x))

    def aligned_training_splits(self, wildcards: Any) -> list[str]:
        """The new labels of all splits of the training subset."""
        return self._aligned(wildcards, "train")

    def aligned_splits(self, wildcards: Any) -> list[str]:
        """The new labels of all splits of the subset that the wildcard ``scored`` names."""
        return self._aligned(wildcards, wildcards.scored)

    def _aligned(self, wildcards: Any, subset: str) -> list[str]:
        run, alignment = self.runs[wildcards.run], int(wildcards.alignment)
        return [str(run.aligned_labels_file(alignment, split, subset)) for split in range(run.settings.num_splits)]

    # The final model.

    def models_to_combine(self, wildcards: Any) -> list[str]:
        return [str(self.runs[wildcards.run].model_file(x)) for x in self.plans.last_models(wildcards.run)]

    def labels_for_combination(self, wildcards: Any) -> list[str]:
        """The labels of the validation frames; none before the first realignment."""
        alignment = self.plans.alignment_of_model(wildcards.run, self.plans.last_models(wildcards.run)[-1])
        return _not_none([self.runs[wildcards.run].diagnostic_labels_file(alignment, "valid")])

    def graph_key(self, wildcards: Any, output: Any) -> str:
        """The digest of a run's decoding graph when the call started."""
        return self._graph_keys[self.runs[wildcards.run].settings.path("graph")]

    def decoded(self, wildcards: Any) -> list[str]:
        """The decoded words of all splits; none without a graph."""
        run = self.runs[wildcards.run]
        return [str(run.decoded_file(split)) for split in range(run.settings.num_splits)] if run.settings.graph else []

    def decoded_words(self, wildcards: Any) -> list[str]:
        """The decoded words of all splits."""
        if not self._planned(wildcards.run).settings.graph:
            raise self.call.error_type(f"{wildcards.run}: no words are decoded, because its settings have no graph")
        return self.decoded(wildcards)

    # Reports.

    def metrics(self, wildcards: Any) -> list[str]:
        run, num_iters = self.runs[wildcards.run], self.plans.num_iterations(wildcards.run)

        def is_needed(x: int) -> bool:
            # The report of a removed model stays: naming it as input would ask for the model again.
            return not run.pruned_marker.exists() or run.model_file(x).exists() or not run.report_file(x).exists()

        reports = (run.report_file(x) for x in range(1, num_iters + 1) if is_needed(x))
        diagnostics = (run.diagnostics_file(x) for x in range(num_iters + 1))
        # Only the settings may have been set aside.
        settings = [] if run.settings_file.exists() else [run.settings_file]
        return [str(path) for path in (run.plan_file, *settings, run.data / "corpus.json", *diagnostics, *reports)]

    def metrics_of_all_runs(self, wildcards: Any) -> list[str]:
        return [f"{self._planned(name).folder}/metrics.tsv" for name in self.runs]

    def all_lm_weight_scores(self, wildcards: Any) -> list[str]:
        return [str(self._planned(name).lm_weight_scores_file) for name, run in self.runs.items() if run.settings.graph]

    def all_models(self, wildcards: Any) -> list[str]:
        """Every model of every run: one that was deleted is made again, even if nothing else needs it.

        Where models are removed, they are made only for what needs them.
        """
        return [
            str(run.model_file(x))
            for name, run in self.runs.items()
            for x in range(self.plans.num_iterations(name) + 1)
            if self.execution.model_retention.all and not run.pruned_marker.exists()
        ]

    def _planned(self, name: str) -> Run:
        self.plans.plan_for(name)
        return self.runs[name]
