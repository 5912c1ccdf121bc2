"""What can go wrong with the page."""

from __future__ import annotations

from statemachine_trainer.machine.errors import StateMachineError


class PageError(StateMachineError):
    """The page cannot be served, or does not do what it was asked for."""


class NotNow(PageError):
    """A button was pressed that is greyed."""
