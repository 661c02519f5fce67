"""The learning-rate schedules: functions that give the effective learning rate at a point of training.

To add one, write a function here and register it; its name is then a value of the setting ``lrate_schedule``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ngsgd import registry

#: The effective learning rate when ``processed`` of ``total`` expanded archives have been processed, given the rates at
#: the start and at the end: (initial, final, processed, total) -> rate. The last iteration has the final rate, whatever
#: the schedule.
LearningRateSchedule = Callable[[float, float, int, float], float]

SCHEDULES: dict[str, LearningRateSchedule] = {}


def register_schedule(name: str) -> Callable[[LearningRateSchedule], LearningRateSchedule]:
    """Registers the decorated function as the schedule that ``lrate_schedule: <name>`` selects."""

    def register(schedule: LearningRateSchedule) -> LearningRateSchedule:
        registry.add(SCHEDULES, name, schedule)
        return schedule

    return register


@register_schedule("exponential")
def exponential(initial: float, final: float, processed: int, total: float) -> float:
    """Exponential decay. Source: ``train_multisplice_accel2.sh`` of Kaldi."""
    return initial * math.exp(processed * math.log(final / initial) / total)


@register_schedule("linear")
def linear(initial: float, final: float, processed: int, total: float) -> float:
    """Linear decay."""
    return initial + (final - initial) * (processed / total)
