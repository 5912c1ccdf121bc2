"""Mistakes in what is logged, read or restored, one class for each kind."""

from __future__ import annotations

from statemachine_trainer.machine.errors import StateMachineError


class MetricError(StateMachineError):
    """A mistake in what is logged, read or restored."""


class BadMetricValue(MetricError):
    """A value that is not one number, or a weight that is not one."""


class MetricConflict(MetricError):
    """One name logged in two ways within one pass."""


class UnsavableMetric(MetricError):
    """A metric object whose state cannot be written down."""


class LateMetric(MetricError):
    """A metric object that was used before its saved state could be given back to it."""


class UnknownMetric(MetricError, KeyError):
    """A name that nobody has logged in this pass."""

    def __str__(self) -> str:
        return str(self.args[0])  # A KeyError would quote the message.
