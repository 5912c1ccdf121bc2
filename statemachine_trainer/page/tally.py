"""What the page sees of a running machine: counters, times, and a place to hold it.

A probe around the work of each state. The training thread writes, the page's thread reads; neither
waits for the other but where the page was asked to hold the run.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from statemachine_trainer.machine.program import Work

RECENT = 30
"""Transitions that are remembered."""

_GLANCE = 0.2
"""Seconds between two looks at whether a held run has something to do."""


@dataclass(slots=True, eq=False)
class Answer:
    """An event that a state answered with, and how often."""

    state: str
    event: str
    count: int = 0


@dataclass(slots=True, eq=False)
class StateTally:
    """What one state did while the page was open.

    Attributes:
        seconds: How long it worked, all in all.
        answers: By event; None where it rested.
    """

    seconds: float = 0.0
    answers: dict[object, Answer] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        """How often it worked."""
        return sum(one.count for one in [*self.answers.values()])


def edges_as_data(counts: Mapping[tuple[str, str], int]) -> list[dict[str, Any]]:
    """How often each edge was gone, by source and event, as data that JSON can hold."""
    return [
        {"source": source, "event": event, "count": count}
        for (source, event), count in counts.items()
    ]


class Tally:
    """A probe that counts, and holds the run before a state when told to.

    Args:
        is_called: Tells whether the run has to go on, held or not: something waits for its next
            boundary, such as a signal of the system that wants a checkpoint.
    """

    def __init__(self, is_called: Callable[[], bool]) -> None:
        self.states: dict[str, StateTally] = {}
        self.recent: deque[Answer] = deque(maxlen=RECENT)
        self._is_called = is_called
        self._holding = False  # whether the run is to be held
        self._held: str | None = None
        self._steps = 0
        self._turn = threading.Condition()

    def probe(self, path: str, work: Work) -> Work:
        """Put the tally around the work of a state; for `Driver.instrument`.

        Kept short, and building nothing anew: it is paid at each transition while the page is open.
        """
        mine = self.states.setdefault(path, StateTally())
        answers, note, clock = mine.answers, self.recent.append, time.perf_counter

        def tallied() -> object:
            if self._holding:
                self._hold(path)
            begun = clock()
            event = work()
            mine.seconds += clock() - begun
            answer = answers.get(event)
            if answer is None:
                name = event if isinstance(event, str) else "(rests)"
                answer = answers[event] = Answer(path, name)
            answer.count += 1
            note(answer)
            return event

        return tallied

    # -- holding ---------------------------------------------------------------------------------

    @property
    def held(self) -> str | None:
        """Path of the state before which the run is held; None if it is not."""
        return self._held

    def hold(self) -> None:
        """Hold the run before its next state."""
        self._holding = True

    def step(self) -> None:
        """Let a held run do one state's work."""
        with self._turn:
            self._steps += 1
            self._turn.notify_all()

    def go_on(self) -> None:
        """Let the run go on."""
        with self._turn:
            self._holding = False
            self._turn.notify_all()

    def _hold(self, path: str) -> None:
        with self._turn:
            self._held = path
            try:
                while self._holding and not self._steps and not self._is_called():
                    self._turn.wait(_GLANCE)
                self._steps = max(0, self._steps - 1)
            finally:
                self._held = None
