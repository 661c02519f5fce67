"""Access to the attributes of Snakemake's workflow object that are not part of its documented interface.

For a new version of Snakemake also check `inputs.Step` (signatures of input and params functions), `lifecycle` (its
handler of SIGTERM, the form of its log), `job_policy` (its jobs), ``common.smk`` (its checkpoints), and the executor
plugin.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from ngsgd.errors import NgsgdError
from ngsgd.training.call_settings import MEMORY

MAJOR_VERSION = 9  # of Snakemake, that this module was written for


class SnakemakeCall:
    """One call of Snakemake, as the Python behind the rules sees it.

    Args:
        workflow: Snakemake's workflow object.
        version: Snakemake's version.
        error_type: Snakemake's exception for errors of the user, which it reports without a traceback.

    Raises:
        NgsgdError: another major version of Snakemake.
    """

    def __init__(self, workflow: Any, version: str, error_type: Callable[[str], Exception]) -> None:
        if int(version.partition(".")[0]) != MAJOR_VERSION:
            raise NgsgdError(
                f"Snakemake {version} is installed, but this version of ngsgd needs Snakemake {MAJOR_VERSION}; "
                f"install it by `pip install 'snakemake=={MAJOR_VERSION}.*'`"
            )
        self._workflow = workflow
        self.error_type = error_type

    def is_used_before(self, config: Mapping[str, Any]) -> bool:
        """Whether the same call has read this workflow already, as each ``use rule`` of another workflow does.

        Raises:
            NgsgdError: it has, with another configuration.
        """
        before = getattr(self._workflow, "ngsgd_config", None)
        self._workflow.ngsgd_config = dict(config)
        if before is not None and before != config:
            raise NgsgdError(
                "ngsgd is used twice in this workflow, with different configurations: put all runs into the "
                "configuration of one module"
            )
        return before is not None

    def add_hooks(
        self,
        plan: Callable[[], None],
        start: Callable[[], None],
        success: Callable[[], None],
        error: Callable[[list[str]], None],
    ) -> None:
        """Has functions called before the first job, and at the end of a call that has run jobs.

        The directives ``onstart``, ``onsuccess`` and ``onerror`` would not do: Snakemake ignores them in a module, and
        with ``--no-hooks``. The main Snakefile's own handlers run after these functions.

        Args:
            plan: called before the graph of jobs is made, but not in a dry run.
            start: called before the first job, but not if there is nothing to do, nor in a dry run.
            success: called after the last job.
            error: called after a job has failed, with the paths of Snakemake's logs.
        """
        workflow = self._workflow

        def add(arguments: dict[str, Any]) -> None:
            if workflow.execution_settings is None:  # no jobs are run
                return
            if not workflow.dryrun:
                plan()
            handlers = [workflow._onstart, workflow._onsuccess, workflow._onerror]
            if workflow.execution_settings.no_hooks:
                handlers = [lambda log: None] * 3
                workflow.execution_settings.no_hooks = False
            functions = [lambda log: start(), lambda log: success(), error]
            workflow._onstart, workflow._onsuccess, workflow._onerror = map(_one_after_the_other, functions, handlers)

        self._around_planning(add)

    def make_only_what_is_missing(self, triggers: frozenset[Any]) -> None:
        """Sets what the rules of rerunning (docs/rerunning.md) need, whatever the profile and the command line say.

        Finished files must not be made again because code or inputs have changed, nor because a call was killed while
        they were made, and Snakemake's own lock must not stop the next call then. Other rules, of a workflow that uses
        this one, keep that lock and their marks of incomplete files.

        Args:
            triggers: for which changes Snakemake makes files again.
        """
        workflow, folder = self._workflow, self.root / "workflow/rules"

        def is_own(rule: Any) -> bool:
            return rule.norun or Path(rule.basedir.get_path_or_uri(secret_free=True)) == folder

        def before(arguments: dict[str, Any]) -> None:
            workflow.dag_settings.rerun_triggers = triggers
            if all(map(is_own, workflow.rules)):
                arguments["nolock"] = True

        def after() -> None:
            incomplete_files = workflow.dag.incomplete_files

            async def others() -> list[Any]:
                return [file for file in await incomplete_files() if not is_own(file.rule)]

            workflow.dag.incomplete_files = others

        self._around_planning(before, after)

    def _around_planning(
        self, before: Callable[[dict[str, Any]], None], after: Callable[[], None] = lambda: None
    ) -> None:
        """Has functions called before and after Snakemake makes its empty graph of jobs.

        All files are parsed by then, and all settings of the call are known.

        Args:
            before: called with the arguments, which it may change.
            after: called when the graph exists.
        """
        prepare = self._workflow._prepare_dag

        def prepare_dag(**arguments: Any) -> None:
            before(arguments)
            prepare(**arguments)
            after()

        self._workflow._prepare_dag = prepare_dag

    @property
    def is_main_process(self) -> bool:
        """Whether this process schedules jobs; others run one job of it."""
        return bool(self._workflow.is_main_process)

    @property
    def on_cluster(self) -> bool:
        """Whether jobs go to a cluster."""
        return self._workflow.global_resources["_nodes"].value is not None

    @property
    def cores(self) -> int | None:
        """The cores that the call may use on this machine; None if there is no limit."""
        cores: int | None = self._workflow.global_resources["_cores"].value
        return cores

    def set_default_resource(self, name: str, value: int) -> None:
        """Limits a resource over all local jobs, unless the command line does."""
        if name not in self._workflow.global_resources:
            self._workflow.global_resources[name] = value

    def read_units_of_memory(self) -> None:
        """Has ``mem_mb: 8G`` and ``mem_mb: null`` in a profile mean what ``mem: 8G`` and ``mem_mb: 0`` mean.

        Snakemake reads units in ``mem`` only, and fails when it runs the first job. To be called before the first rule.
        """
        settings = self._workflow.resource_settings
        for resources in (settings._parsed_default_resources, *settings._parsed_overwrite_resources.values()):
            if "mem_mb" not in resources:
                continue
            resource = resources["mem_mb"]
            if resource.raw in ("None", "null"):
                resources["mem_mb"] = 0
            elif isinstance(resource.raw, str) and re.fullmatch(MEMORY["pattern"], resource.raw):
                resources["mem_mb"] = resource.parse_human_friendly("mem", resource.raw)

    @property
    def retries(self) -> int:
        """How often a failed job is tried again."""
        return int(self._workflow.execution_settings.retries)

    @property
    def root(self) -> Path:
        """The folder of this project, found from a file in ``workflow/rules`` that is being parsed.

        Snakemake's ``basedir`` is the folder of the main Snakefile, which may use this workflow as a module.

        Raises:
            NgsgdError: the files are not on this machine, or a module changes the paths of the results.
        """
        folder = self._workflow.current_basedir
        if not getattr(folder, "is_local", False):
            raise NgsgdError(f"{folder}: ngsgd cannot be used from a remote place: clone it, and name the clone's path")
        modifier = self._workflow.modifier.path_modifier
        while modifier is not None:
            if modifier.prefix is not None or modifier.modifies_prefixes:
                raise NgsgdError(
                    "prefix and replace_prefix of a module are not possible with ngsgd, which finds its files in "
                    "results/: leave them out, and use another working directory (--directory) for other results"
                )
            modifier = modifier.inner_modifier
        return Path(folder.get_path_or_uri(secret_free=True)).parents[1]

    def with_defaults(self, config: dict[str, Any], defaults: Path) -> dict[str, Any]:
        """Completes a configuration by a file's values for the keys that it lacks.

        ``configfile:`` would do less: Snakemake skips it in a module that has a configuration, and it replaces what a
        Snakefile has set that includes this one.

        Args:
            config: the configuration of the command line, or that of a module.
            defaults: path of the file.

        Raises:
            NgsgdError: the configuration is not a mapping.
        """
        if not isinstance(config, Mapping):
            raise NgsgdError(f"the configuration is {config!r:.60}, expected settings, such as `num_epochs: 4`")
        settings = self._workflow.config_settings
        if not self._workflow.modifier.skip_configfile:
            # A module without a configuration has an empty one.
            config = config | settings.overwrite_config
        if settings.replace_workflow_config:
            return config
        read: dict[str, Any] = yaml.safe_load(defaults.read_text(encoding="utf-8"))
        return read | config

    @property
    def forces_all(self) -> bool:
        """Whether the call has ``--forceall``."""
        return bool(self._workflow.dag_settings.forceall)

    @property
    def forces_targets(self) -> bool:
        """Whether the call has ``--force``."""
        return bool(self._workflow.dag_settings.forcetargets)

    @cached_property
    def forced(self) -> frozenset[str]:
        """The rules and files that ``--forcerun`` names."""
        return frozenset(self._workflow.dag_settings.forcerun)

    def forces_rule_of(self, path: str) -> bool:
        """Whether ``--forcerun`` names the rule that makes a file; a module may have given another name to the rule."""
        return any(rule.is_producer(path) for rule in self._forced_rules)

    def checkpoint_of(self, path: str) -> Any:
        """The checkpoint that makes a file, as a rule of Snakemake.

        ``checkpoints.<name>`` exists only where the checkpoint was declared: not in a second ``use rule``, which reads
        this workflow again for a single rule.
        """
        return next(rule for rule in self._workflow.rules if rule.is_checkpoint and rule.is_producer(path))

    @cached_property
    def _forced_rules(self) -> list[Any]:
        return [self._workflow.get_rule(name) for name in self.forced if self._workflow.is_rule(name)]

    def force(self, paths: Iterable[str]) -> None:
        """Forces files to be made even if they exist: Snakemake does not look at the inputs of a target that is there
        already.
        """
        self._workflow.dag.forcefiles.update(paths)

    def is_target(self, path: str) -> bool:
        """Whether the call names a file as its target."""
        return path in self._workflow.dag.targetfiles


def _one_after_the_other(
    first: Callable[[list[str]], None], second: Callable[[list[str]], None]
) -> Callable[[list[str]], None]:
    def both(log: list[str]) -> None:
        first(log)
        second(log)

    return both
