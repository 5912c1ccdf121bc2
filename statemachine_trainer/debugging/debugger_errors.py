"""Mistakes in the use of the debugger."""

from __future__ import annotations

from statemachine_trainer.machine.errors import StateMachineError


class BadBreakpoint(StateMachineError):
    """A breakpoint at which a fit never stops, or a number that no breakpoint has."""


class NothingRemembered(StateMachineError):
    """There is no boundary to go back to."""


class BadExpression(StateMachineError):
    """What was typed is no expression of Python, or raises."""
