"""The request of a job, made from Snakemake's resources, whatever executor plugin these were written for."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Set
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_ngsgd.scheduler import Resources, Scheduler

#: Names of `snakemake-executor-plugin-slurm`, and of the resources here that mean the same.
ALIASES = {
    "slurm_partition": "partition",
    "slurm_account": "account",
    "slurm_extra": "extra",
    "gpu": "gpus",
    "cpus_per_task": "cpus",
}
SINGLE = ("nodes", "tasks")  # a job is one process
PER_JOB = (*SINGLE, "mem_mb_per_cpu")  # what does not add up in a group of jobs
NUMBERS = {"mem_mb", "mem_mb_per_cpu", "runtime", "gpus", "cpus"}
#: Resources of that plugin without a meaning here, and what to do instead.
REFUSED = {
    "clusters": "set the environment variable SLURM_CLUSTERS, which srun, squeue and scancel read",
    "cluster": "set the environment variable SLURM_CLUSTERS, which srun, squeue and scancel read",
    "cpus_per_gpu": "use cpus_per_task, or write the option into extra",
    "tasks_per_gpu": "a job is one process; leave it out",
    "tasks_per_node": "a job is one process; leave it out",
    "mpi": "a job is one process; leave it out",
}


def check_resources(rules: Iterable[Any], scheduler: Scheduler) -> None:
    """Refuses resources that would be ignored.

    Args:
        rules: Snakemake's rules.
        scheduler: the scheduler.

    Raises:
        WorkflowError: a rule has a resource that this executor, or the scheduler, cannot request.
    """
    for rule in rules:
        for name, resource in rule.resources.items():
            if not resource.is_evaluable() and not resource.value:
                continue
            advice = REFUSED.get(name)
            if name in scheduler.lacks:
                advice = "this scheduler has no such request; write its own option into extra"
            elif name.startswith("slurm_") and name not in ALIASES:
                advice = "no resource of this executor; write the option into extra"
            if advice:
                raise WorkflowError(f"resource {name} of rule {rule.name}: {advice} (docs/clusters.md)")


def make_request(resources: Mapping[str, Any], threads: int, defaults: Set[str]) -> Resources:
    """Returns what a job requests from the scheduler.

    Args:
        resources: the job's resources.
        threads: the job's threads.
        defaults: names of the resources that the rule takes from ``default-resources``.

    Raises:
        WorkflowError: a value has the wrong type, or stands for several processes.
    """
    given = {name: value for name, value in resources.items() if value not in (None, "", 0)}
    for name in SINGLE:
        if given.get(name, 1) != 1:
            raise WorkflowError(f"resource {name}={given[name]}: a job is one process on one node; leave {name} out")
    # The rule's own request for memory goes before the default one, in whatever form.
    memory = {"mem_mb", "mem_mb_per_cpu"}
    if memory <= given.keys() and len(memory & defaults) == 1:
        (default,) = memory & defaults
        if default == "mem_mb_per_cpu":
            # The site wants requests in this form.
            cpus = given.get("cpus_per_task", threads)
            given["mem_mb_per_cpu"] = -(-_number("mem_mb", given["mem_mb"]) // _number("cpus_per_task", cpus))
    if "mem_mb_per_cpu" in given:
        given.pop("mem_mb", None)
    request: dict[str, Any] = {}
    for name, value in given.items():
        field = ALIASES.get(name, name)
        if field not in Resources.__dataclass_fields__:
            continue
        value = _number(name, value) if field in NUMBERS else str(value)
        request[field] = max(value, request.get(field, 0)) if field in NUMBERS else request.get(field) or value
    return Resources(**{**request, "threads": threads})


def _number(name: str, value: Any) -> int:
    try:
        return int(value)
    except ValueError:
        raise WorkflowError(f"resource {name}={value}: expected a whole number") from None


def has_unasked_memory(defaults: Any) -> bool:
    """Returns whether the memory of Snakemake's default resources is of its own choice.

    Snakemake adds it to ``default-resources`` that have no memory: 1000 MB or more, by the size of the input.

    Args:
        defaults: Snakemake's default resources.
    """
    if "mem_mb" not in defaults or not defaults["mem_mb"].is_evaluable():
        return False
    expression = inspect.getclosurevars(inspect.unwrap(defaults["mem_mb"]._evaluator)).nonlocals.get("value")
    return bool(expression == defaults.DEFAULTS["full"]["mem"])
