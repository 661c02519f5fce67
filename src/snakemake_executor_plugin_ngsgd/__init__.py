"""Snakemake executor plugin for SLURM and Grid Engine: ``executor: ngsgd`` in a profile.

Snakemake looks up `Executor`, `ExecutorSettings` and `common_settings` here. A workflow may call `set_job_policy` while
it is parsed, and `cancel_former_jobs` before its first job.
"""

from snakemake_executor_plugin_ngsgd.executor import Executor, cancel_former_jobs, common_settings
from snakemake_executor_plugin_ngsgd.policy import JobPolicy, set_job_policy
from snakemake_executor_plugin_ngsgd.settings import ExecutorSettings

__all__ = ["Executor", "ExecutorSettings", "JobPolicy", "cancel_former_jobs", "common_settings", "set_job_policy"]
