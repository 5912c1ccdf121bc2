"""What can be said against a set-up that was to be resumed."""

from __future__ import annotations

from statemachine_trainer.machine.errors import StateMachineError


class TestingError(StateMachineError):
    """Base of the errors of `statemachine_trainer.testing`."""

    __test__ = False  # not a test case of pytest


class NotResumable(TestingError, AssertionError):
    """A resumed run differs from one that was never interrupted.

    Attributes:
        stops: Numbers of the boundaries at which the run was stopped and resumed.
        boundary: Number of the boundary at which the two were first seen to differ.
        place: Path of the state about to run there; None at the end of the run.
        differences: What differs there, the first one first, in words.
        suspects: Attributes that no state holds and that differed right after the resuming.
    """

    def __init__(
        self,
        message: str,
        *,
        stops: tuple[int, ...] = (),
        boundary: int = 0,
        place: str | None = None,
        differences: tuple[str, ...] = (),
        suspects: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.stops = stops
        self.boundary = boundary
        self.place = place
        self.differences = differences
        self.suspects = suspects


class NotRepeatable(TestingError, AssertionError):
    """Two runs that nobody interrupted differ, so nothing can be said about resuming."""


class NoStopPoint(TestingError, ValueError):
    """A run was to be stopped where it cannot be."""


class NotReady(TestingError):
    """`make_trainer` did not return a trainer whose fit has been started and not run."""


class NotImportable(TestingError):
    """`make_trainer` cannot be found by another process."""


class FreshProcessFailed(TestingError):
    """The process in which the run was to go on ended with an error."""


class HypothesisMissing(TestingError, ImportError):
    """A tool needs hypothesis, which is not installed."""


class HiddenState(UserWarning):
    """A callback keeps state that no snapshot holds; the run itself came out the same."""
