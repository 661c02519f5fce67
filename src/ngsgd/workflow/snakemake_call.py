"""Access to the attributes of Snakemake's workflow object that are not part of its documented interface.

For a new version of Snakemake also check `inputs.Step` (signatures of input and params functions), `lifecycle` (its
handler of SIGTERM, the form of its log), `job_policy` (its jobs) and the executor plugin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ngsgd.errors import NgsgdError

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

    @property
    def retries(self) -> int:
        """How often a failed job is tried again."""
        return int(self._workflow.execution_settings.retries)

    @property
    def command_line_config(self) -> dict[str, Any]:
        """The configuration given by ``--configfile`` and ``--config``, without the defaults."""
        config: dict[str, Any] = self._workflow.config_settings.overwrite_config
        return config

    @property
    def forces_all(self) -> bool:
        """Whether the call has ``--forceall``."""
        return bool(self._workflow.dag_settings.forceall)

    @property
    def forces_targets(self) -> bool:
        """Whether the call has ``--force``."""
        return bool(self._workflow.dag_settings.forcetargets)

    @property
    def forced(self) -> frozenset[str]:
        """The rules and files that ``--forcerun`` names."""
        return frozenset(self._workflow.dag_settings.forcerun)

    def force(self, paths: Iterable[str]) -> None:
        """Forces files to be made even if they exist: Snakemake does not look at the inputs of a target that is there
        already.
        """
        self._workflow.dag.forcefiles.update(paths)

    def is_target(self, path: str) -> bool:
        """Whether the call names a file as its target."""
        return path in self._workflow.dag.targetfiles
