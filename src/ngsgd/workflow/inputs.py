"""The input functions of the rules: the files that each step reads, reduced to those that Snakemake must make first."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ngsgd.data.corpus import SUBSETS
from ngsgd.training.execution import Execution
from ngsgd.training.run import Run
from ngsgd.training.settings import Settings
from ngsgd.workflow.plans import Plans
from ngsgd.workflow.runs import initial_model_path, recipe_path
from ngsgd.workflow.snakemake_call import SnakemakeCall

CORPUS_FILES = [f"{subset}.{part}" for subset in SUBSETS for part in ("features.npy", "labels.npy", "utterances.tsv")]

#: The steps of training that follow from one another. Where one of them is forced, everything is made again.
CHAIN = {"activate_recipe", "plan", "initial_model", "train", "average", "adjust_priors", "align", "relabel"}

#: What a step reads: a path or several by name.
Reads = dict[str, Path | list[Path]]


def missing_inputs(
    *outputs: str,
) -> Callable[[Callable[[Inputs, Any, Run], Reads]], Callable[[Inputs, Any], list[str]]]:
    """Makes an input function of one that says what a step reads; it returns only what is missing or forced.

    All files of a run belong to one recipe (see `ngsgd.training.recipe`), so that a file that exists is the right one.
    Snakemake would regard it as out of date as soon as one of its inputs has been made again, though with the same
    bytes. So Snakemake gets only those inputs that do not exist, and only if an output does not exist. Where
    everything is forced, or a whole step of training, it gets all of them.

    Args:
        outputs: patterns of the step's outputs; the decorated method has the name of the rule.
    """

    def decorate(reads: Callable[[Inputs, Any, Run], Reads]) -> Callable[[Inputs, Any], list[str]]:
        rule = reads.__name__

        @functools.wraps(reads)
        def inputs(self: Inputs, wildcards: Any) -> list[str]:
            self.plans.plan_for(wildcards.run)  # a new recipe sets the files of the former one aside
            return self.missing(
                rule,
                [pattern.format(**wildcards) for pattern in outputs],
                reads(self, wildcards, self.runs[wildcards.run]),
            )

        # Snakemake looks at the signature.
        del inputs.__wrapped__
        return inputs

    return decorate


class Inputs:
    """The input functions, one for each rule and with its name.

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
        execution: Execution,
        corpora: Mapping[str, Settings],
        examples: Mapping[str, Settings],
    ) -> None:
        self.runs, self.plans, self.call, self.execution = runs, plans, call, execution
        self._corpora, self._examples = corpora, examples

    def missing(self, rule: str, outputs: list[str], reads: Reads) -> list[str]:
        """Of what a step reads, what Snakemake has to make first; see `missing_inputs`."""
        paths = [str(path) for value in reads.values() for path in (value if isinstance(value, list) else [value])]
        forced = self.call.forced
        if self.call.forces_all or not CHAIN.isdisjoint(forced):
            return paths

        def wanted(path: str) -> bool:
            return path in forced or not Path(path).exists()

        if not (self.call.forces_targets or rule in forced or any(map(wanted, outputs))):
            return []
        return [path for path in paths if wanted(path)]

    # The corpus.

    def part_infos(self, wildcards: Any) -> list[str]:
        """The descriptions of the parts in which a corpus is prepared."""
        num = self._corpora[wildcards.data].num_splits
        return [f"results/data/{wildcards.data}/parts/{k}of{num}/corpus.json" for k in range(num)]

    def part_files(self, wildcards: Any) -> list[str]:
        """The other files of these parts."""
        return [info.replace("corpus.json", file) for info in self.part_infos(wildcards) for file in CORPUS_FILES]

    def corpus_of_run(self, wildcards: Any) -> str:
        return f"{self.runs[wildcards.run].data}/corpus.json"

    # The examples.

    def corpus_of_examples(self, wildcards: Any) -> str:
        return f"results/data/{self._examples[wildcards.egs].data_key()}/corpus.json"

    def distributed(self, wildcards: Any) -> list[str]:
        """The files in which the splits of the utterances lie as examples, by archive."""
        num = self._examples[wildcards.egs].num_splits
        return [f"results/egs/{wildcards.egs}/distributed/{k}of{num}.npy" for k in range(num)]

    # Training.

    @missing_inputs("results/{run}/plan.tsv", "results/{run}/settings.json")
    def plan(self, wildcards: Any, run: Run) -> Reads:
        return {"recipe": Path(recipe_path(run))}

    @missing_inputs("results/{run}/models/0.safetensors")
    def initial_model(self, wildcards: Any, run: Run) -> Reads:
        origin = initial_model_path(run.settings) or run.transform
        return {"settings": run.settings_file, "origin": origin, "corpus": run.data / "corpus.json"}

    @missing_inputs("results/{run}/jobs/{iteration}.{job}.safetensors")
    def train(self, wildcards: Any, run: Run) -> Reads:
        job = self.plans.job(wildcards)
        archives = [job.archive]
        if self.execution.min_jobs is not None and self.plans.starts_alignment(wildcards.run, job.iteration):
            # The archives of lost jobs may have to be trained on with the new labels, too.
            archives += [a for a in range(self.plans.num_archives(wildcards.run)) if a != job.archive]
        labels = [run.labels(job.alignment, archive) for archive in archives]
        return {
            "plan": run.plan,
            "settings": run.settings_file,
            "model": run.model(job.iteration),
            "archive": run.archive(job.archive),
            "labels": [path for path in labels if path is not None],
        }

    @missing_inputs("results/{run}/models/{next}.safetensors", "results/{run}/reports/{next}.json")
    def average(self, wildcards: Any, run: Run) -> Reads:
        x = int(wildcards.next) - 1
        lost = self.plans.lost(wildcards.run, x)
        jobs = [job.job for job in self.plans.iteration(wildcards.run, x) if job.job not in lost]
        return {
            "plan": run.plan,
            "settings": run.settings_file,
            "jobs": [run.job(x, job) for job in jobs],
            "before": run.model(x),
        }

    @missing_inputs("results/{run}/diagnostics/{iteration}.json")
    def diagnose(self, wildcards: Any, run: Run) -> Reads:
        x = int(wildcards.iteration)
        alignment = self.plans.alignment_of_model(wildcards.run, x)
        labels = [run.diagnostic_labels(alignment, subset) for subset in ("valid", "train")]
        return {
            "plan": run.plan,
            "settings": run.settings_file,
            "model": run.model(x),
            "examples": [run.valid, run.train_subset],
            "labels": [path for path in labels if path is not None],
        }

    # Realignment.

    @missing_inputs("results/{run}/alignments/{alignment}/model.safetensors")
    def adjust_priors(self, wildcards: Any, run: Run) -> Reads:
        x = self.plans.realignment(wildcards.run, int(wildcards.alignment))
        return {"plan": run.plan, "settings": run.settings_file, "model": run.model(x), "prior": run.prior}

    @missing_inputs(
        "results/{run}/alignments/{alignment}/splits/{split}of{num}.train.npy",
        "results/{run}/alignments/{alignment}/splits/{split}of{num}.valid.npy",
    )
    def align(self, wildcards: Any, run: Run) -> Reads:
        model = run.alignment_model(int(wildcards.alignment))
        return {"settings": run.settings_file, "model": model, "corpus": run.data / "corpus.json"}

    @missing_inputs("results/{run}/alignments/{alignment}/archives/{archive}.npy")
    def relabel(self, wildcards: Any, run: Run) -> Reads:
        return {"settings": run.settings_file, "splits": self._alignment_splits(wildcards, run, "train")}

    @missing_inputs("results/{run}/diagnostics/labels/{alignment}.{scored}.npy")
    def relabel_diagnostics(self, wildcards: Any, run: Run) -> Reads:
        return {"settings": run.settings_file, "splits": self._alignment_splits(wildcards, run, wildcards.scored)}

    def _alignment_splits(self, wildcards: Any, run: Run, subset: str) -> list[Path]:
        return [run.aligned(int(wildcards.alignment), split, subset) for split in range(run.settings.num_splits)]

    # The final model.

    @missing_inputs("results/{run}/final.safetensors", "results/{run}/combination.json")
    def combine(self, wildcards: Any, run: Run) -> Reads:
        last = self.plans.last_models(wildcards.run)
        alignment = self.plans.alignment_of_model(wildcards.run, last[-1])
        labels = run.diagnostic_labels(alignment, "valid")
        return {
            "plan": run.plan,
            "settings": run.settings_file,
            "models": [run.model(x) for x in last],
            "valid": run.valid,
            "prior": run.prior,
            "corpus": run.data / "corpus.json",
            "labels": [] if labels is None else [labels],
        }

    @missing_inputs("results/{run}/decoding/graph.fst")
    def graph(self, wildcards: Any, run: Run) -> Reads:
        return {"settings": run.settings_file, "corpus": run.data / "corpus.json"}

    def decode(self, wildcards: Any) -> list[str]:
        run = self._planned(wildcards.run)
        reads = [run.settings_file, run.data / "corpus.json", run.graph]
        return self._after_final(run, run.decoded(int(wildcards.split)), reads)

    def score_lm_weights(self, wildcards: Any) -> list[str]:
        run = self._planned(wildcards.run)
        if not run.settings.graph:
            raise self.call.error_type(f"{wildcards.run}: no words are decoded, because its settings have no graph")
        return [str(run.decoded(split)) for split in range(run.settings.num_splits)]

    def evaluate(self, wildcards: Any) -> list[str]:
        run = self._planned(wildcards.run)
        words = self.score_lm_weights(wildcards) if run.settings.graph else []
        return self._after_final(run, run.evaluation, [run.settings_file, run.data / "corpus.json"]) + words

    def _after_final(self, run: Run, output: Path, reads: list[Path]) -> list[str]:
        """The final model and, if the output is to be made, what else is missing.

        A final model that was made again, perhaps from other candidates, is decoded and evaluated again.
        """
        done = output.exists() and run.final.exists() and run.final.stat().st_mtime <= output.stat().st_mtime
        forced = self.call.forces_all or self.call.forces_targets or self.call.forced
        missing = [str(path) for path in reads if not path.exists()] if forced or not done else []
        return [str(run.final), *missing]

    # Reports.

    def metrics(self, wildcards: Any) -> list[str]:
        run, num_iters = self.runs[wildcards.run], self.plans.num_iterations(wildcards.run)

        def is_needed(x: int) -> bool:
            # The report of a removed model stays: naming it as input would ask for the model again.
            return not run.pruned.exists() or run.model(x).exists() or not run.report(x).exists()

        reports = (run.report(x) for x in range(1, num_iters + 1) if is_needed(x))
        diagnostics = (run.diagnostics(x) for x in range(num_iters + 1))
        # Only the settings may have been set aside.
        settings = [] if run.settings_file.exists() else [run.settings_file]
        return [str(path) for path in (run.plan, *settings, run.data / "corpus.json", *diagnostics, *reports)]

    def metrics_of_all_runs(self, wildcards: Any) -> list[str]:
        return [f"{self._planned(name).folder}/metrics.tsv" for name in self.runs]

    def all_lm_weight_scores(self, wildcards: Any) -> list[str]:
        return [str(self._planned(name).lm_weight_scores) for name, run in self.runs.items() if run.settings.graph]

    def all_models(self, wildcards: Any) -> list[str]:
        """Every model of every run: one that was deleted is made again, even if nothing else needs it.

        Where models are removed, they are made only for what needs them.
        """
        return [
            str(run.model(x))
            for name, run in self.runs.items()
            for x in range(self.plans.num_iterations(name) + 1)
            if self.execution.keeping.all and not run.pruned.exists()
        ]

    def _planned(self, name: str) -> Run:
        self.plans.plan_for(name)
        return self.runs[name]
