"""Stepping learning rate schedulers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from statemachine_trainer.loops.errors import MissingMetric
from statemachine_trainer.loops.optimizers import OptimizerSlot, Scheduler
from statemachine_trainer.machine.errors import suggest


def step_schedulers(
    slot: OptimizerSlot,
    interval: Literal["step", "epoch"],
    count: int,
    metrics: Callable[[], Mapping[str, float]],
) -> None:
    """Step those schedulers of an optimizer that are due.

    Args:
        slot: The optimizer.
        interval: Whether a step or an epoch has just been done.
        count: How many of these the optimizer has done in the run.
        metrics: Called for the monitored values, only where one is due: it waits for the device.

    Raises:
        MissingMetric: At the end of an epoch, a strict scheduler monitors a name that was never
            logged. Within the epoch one that goes by steps waits for its first value.
    """
    for one in slot.schedulers:
        if one.monitor is None:
            if one.interval == interval and count % one.frequency == 0:
                one.scheduler.step()
        elif interval == "epoch" or (one.interval == "step" and count % one.frequency == 0):
            _step_monitored(one, interval, count, metrics())


def _step_monitored(
    one: Scheduler, interval: Literal["step", "epoch"], count: int, metrics: Mapping[str, float]
) -> None:
    assert one.monitor is not None
    due = one.interval == interval and count % one.frequency == 0
    if one.monitor in metrics:
        if due:
            one.scheduler.step(metrics[one.monitor])
    elif one.strict and interval == "epoch" and (due or one.interval == "step"):
        raise MissingMetric(
            f"The scheduler {one.name or type(one.scheduler).__name__} monitors {one.monitor!r}, "
            f"which was not logged. {suggest(one.monitor, metrics)} With strict=False it is left "
            "alone until there is a value."
        )
