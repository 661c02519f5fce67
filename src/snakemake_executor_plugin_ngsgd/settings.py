"""The executor's command-line options."""

# Snakemake parses an option by the type of its field, which ``from __future__ import annotations`` would make a string.
from dataclasses import dataclass, field

from snakemake_interface_executor_plugins.settings import ExecutorSettingsBase

# Importing a scheduler's module registers it: a new one is added here.
from snakemake_executor_plugin_ngsgd import gridengine, slurm  # noqa: F401
from snakemake_executor_plugin_ngsgd.scheduler import scheduler_names


@dataclass
class ExecutorSettings(ExecutorSettingsBase):  # type: ignore[misc]
    """Options of the executor; on the command line and in profiles their names begin with ``ngsgd-``."""

    scheduler: str = field(default="slurm", metadata={"help": f"One of {', '.join(scheduler_names())}."})
    sge_memory: str = field(
        default="mem_free", metadata={"help": "Grid Engine's resource for memory, requested per thread."}
    )
    sge_gpu: str = field(default="gpu", metadata={"help": "Grid Engine's resource for GPUs."})
    sge_parallel_environment: str = field(
        default="smp", metadata={"help": "Grid Engine's parallel environment for jobs with several threads."}
    )
    retry_wait: float = field(
        default=10.0,
        metadata={"help": "Seconds from a job's failure to its next attempt, doubled with each attempt."},
    )
