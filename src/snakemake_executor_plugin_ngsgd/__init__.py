"""Snakemake's executor for SLURM and Grid Engine: ``executor: ngsgd`` in a profile.

Snakemake finds `Executor`, `ExecutorSettings` and `common_settings` here by name. Module `executor` has the executor,
`scheduler` the interface of a scheduler; each scheduler is a module of its own.
"""

from snakemake_executor_plugin_ngsgd.executor import Executor, ExecutorSettings, common_settings, hooks

__all__ = ["Executor", "ExecutorSettings", "common_settings", "hooks"]
