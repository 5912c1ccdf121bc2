"""What the page sees of a running machine: counters and times.

A probe around the work of each state. The training thread writes, the page's thread reads; neither
waits for the other.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from statemachine_trainer.machine.edges import Work

RECENT = 30
"""Transitions that are remembered."""


@dataclass(slots=True, eq=False)
class Answer:
    """An event that a state answered with, how often, and how long it worked for that."""

    state: str
    event: str
    count: int = 0
    seconds: float = 0.0


@dataclass(slots=True, eq=False)
class StateTally:
    """What one state did while the page was open.

    Attributes:
        answers: By event; None where it rested.
    """

    answers: dict[object, Answer] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        """How often it worked."""
        return sum(one.count for one in [*self.answers.values()])

    @property
    def seconds(self) -> float:
        """How long it worked, all in all."""
        return sum(one.seconds for one in [*self.answers.values()])


@dataclass(slots=True, eq=False)
class Passage:
    """How often an edge was taken, and how long the states before it worked for that, in seconds."""

    count: int = 0
    seconds: float = 0.0

    def add(self, count: int, seconds: float) -> None:
        """Add what a state answered."""
        self.count += count
        self.seconds += seconds


def edges_as_data(passages: Mapping[tuple[str, str], Passage]) -> list[dict[str, Any]]:
    """Return the edges that were taken, by source and event, as data that JSON can hold."""
    return [
        {"source": source, "event": event, "count": one.count, "seconds": one.seconds}
        for (source, event), one in passages.items()
    ]


def progress_as_data(
    name: str,
    *,
    epoch: int,
    epochs: int | None,
    seconds: float,
    batch: int | None = None,
    batches: int | None = None,
) -> dict[str, Any]:
    """Return how far a run is, as data that JSON can hold.

    Args:
        name: Of the run.
        epoch: Epochs done.
        epochs: Epochs that there will be; None if nobody knows.
        seconds: Time that the run has taken.
        batch: Batches done in this epoch.
        batches: Batches that an epoch has.
    """
    limit = epochs if epochs is not None and math.isfinite(epochs) else None
    done = epoch + (batch / batches if batch and batches else 0.0)
    left = seconds * (limit - done) / done if limit is not None and done else None
    return {
        "name": name,
        "epoch": epoch,
        "epochs": limit,
        "batch": batch,
        "batches": batches,
        "seconds": seconds,
        "left": None if left is None else max(0.0, left),
        "share": min(1.0, done / limit) if limit else None,
    }


class Tally:
    """A probe that counts."""

    def __init__(self) -> None:
        self.states: dict[str, StateTally] = {}
        self.recent: deque[Answer] = deque(maxlen=RECENT)

    def probe(self, path: str, work: Work) -> Work:
        """Put the tally around the work of a state; for `Driver.instrument`.

        Kept short, and building nothing anew: it is paid at each transition while the page is open.
        """
        mine = self.states.setdefault(path, StateTally())

        # As defaults, names of a function lie side by side: see the black box.
        def tallied(
            work: Work = work,
            answers: dict[object, Answer] = mine.answers,
            note: Callable[[Answer], None] = self.recent.append,
            clock: Callable[[], float] = time.perf_counter,
        ) -> object:
            begun = clock()
            event = work()
            try:
                answer = answers[event]
            except KeyError:
                name = event if isinstance(event, str) else "(rests)"
                answer = answers[event] = Answer(path, name)
            answer.seconds += clock() - begun
            answer.count += 1
            note(answer)
            return event

        return tallied


# -- Curves ---------------------------------------------------------------------------------------

POINTS = 400
"""Points of a curve; of more, every other one is dropped."""


class Curves:
    """The curve of each metric."""

    def __init__(self) -> None:
        self._points: dict[str, list[tuple[int, float]]] = {}

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the values at a step; those of a step that is there already are replaced."""
        for name, value in metrics.items():
            points = self._points.setdefault(name, [])
            while points and points[-1][0] >= step:  # gone back by a resume, or the same step
                points.pop()
            points.append((step, float(value)))
            if len(points) > POINTS:
                del points[1:-1:2]

    def to_dict(self) -> dict[str, list[tuple[int, float | None]]]:
        """Each curve as pairs; JSON has no NaN and no infinity, so these are None."""
        return {
            name: [(step, value if math.isfinite(value) else None) for step, value in [*points]]
            for name, points in [*self._points.items()]
        }
