"""A name or type that is registered cannot be registered again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from ngsgd.data.corpora import corpora, register_corpus
from ngsgd.network.components import KINDS, register_component
from ngsgd.optim.layers import register_adapter
from ngsgd.training.averaging_rules import averaging_rules, register_averaging_rule
from ngsgd.training.lrate_schedules import SCHEDULES, register_schedule
from snakemake_executor_plugin_ngsgd.scheduler import register_scheduler

TAKEN: dict[str, Callable[[Any], object]] = {
    "corpus": register_corpus("kaldi"),
    "adapter": register_adapter(nn.Linear),
    "averaging rule": register_averaging_rule("outer-step"),
    "schedule": register_schedule("exponential"),
    "component": register_component,
    "scheduler": register_scheduler("slurm"),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_a_name_cannot_be_registered_twice(kind: str) -> None:
    registered = corpora(), averaging_rules(), dict(SCHEDULES)
    other = next(iter(KINDS.values()))
    with pytest.raises(ValueError, match=r"is registered already, by \w+"):
        TAKEN[kind](other)
    assert (corpora(), averaging_rules(), dict(SCHEDULES)) == registered
