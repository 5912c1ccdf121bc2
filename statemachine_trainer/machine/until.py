"""The goal (`until`) of a run, and iterating over the transitions up to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from statemachine_trainer.machine.board import SignalBoard
from statemachine_trainer.machine.edges import Edge
from statemachine_trainer.machine.errors import BadReceiver
from statemachine_trainer.machine.signals import ENTER, Moment, Subscription, adapt

Until = str | Callable[..., Any] | None
"""Name of a signal, or a condition of `(trainer, moment)` evaluated at each entry of a state."""


class Goal:
    """An `until`, for whole runs and for single transitions.

    A whole run subscribes to it with `watch`, so that other transitions cost nothing. Code that
    makes single transitions asks `is_met` after each.

    Raises:
        BadReceiver: It is neither a name nor a function.
        UnknownSignal, AmbiguousSignal: The board has no signal of this name, or several.
    """

    def __init__(self, until: Until, board: SignalBoard, sender: Any) -> None:
        self._board, self._sender = board, sender
        self._name = until if isinstance(until, str) else None
        self._condition = None
        if self._name is not None:
            board.resolve(self._name)
        elif callable(until):
            self._condition = adapt(until, "until")
        elif until is not None:
            raise BadReceiver(
                f"until={until!r}: give the name of a signal, such as 'validation', or a condition "
                "of `(trainer, moment)`."
            )

    def watch(self, meet: Callable[[], None]) -> Subscription | None:
        """Call `meet` whenever the goal is met. Returns None if there is no goal."""
        if self._name is not None:
            return self._board.watch(self._name, meet)
        if self._condition is not None:
            return self._board.watch("*", meet, when=self._condition)
        return None

    def is_met(self, edge: Edge) -> bool:
        """Return whether following an edge has met the goal."""
        moments = [emission.moment for emission in edge.emissions()]
        if self._condition is not None:
            entries = (moment for moment in moments if moment.kind == ENTER)
            return any(self._condition(self._sender, moment) for moment in entries)
        if self._name is None:
            return False
        # Looked up each time: a swap between two transitions may have made new signals.
        names = {signal.name for signal in self._board.resolve(self._name)}
        return any(moment.signal in names for moment in moments)


class Steppable(Protocol):
    """A machine that makes one transition at a time."""

    @property
    def path(self) -> str | None:
        """Path of the state about to run."""
        ...

    @property
    def transient(self) -> bool:
        """Whether no snapshot can be taken at this boundary."""
        ...

    def advance(self) -> Edge | None:
        """Make one transition."""
        ...

    def take_pause(self) -> bool:
        """Return whether a pause was requested, and clear the request."""
        ...


class Moments(Iterator[Moment]):
    """Makes one transition of a machine per item.

    It is not a generator, so that a StopIteration raised by user code cannot end it.
    """

    def __init__(self, machine: Steppable, goal: Goal) -> None:
        self._machine, self._goal = machine, goal
        self._ended = False

    def __next__(self) -> Moment:
        machine = self._machine
        if self._ended or (machine.path is None and not machine.transient):
            raise StopIteration
        edge = machine.advance()
        if edge is None:
            raise StopIteration
        self._ended = self._goal.is_met(edge) or machine.take_pause()
        return edge.moment
