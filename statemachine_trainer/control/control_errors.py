"""What can go wrong with the page, and with asking a run of another process."""

from __future__ import annotations

from statemachine_trainer.machine.errors import StateMachineError


class PageError(StateMachineError):
    """The page cannot be served, or does not do what it was asked for."""


class NotNow(PageError):
    """A button was pressed that is greyed."""


class NobodyListens(PageError):
    """A run was asked for something and takes no requests, or no longer."""


class NoAnswer(PageError):
    """A run was asked for something, and its process did not answer."""
