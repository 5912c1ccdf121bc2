"""The profile of a run: how long each state works, and what lies between the states."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch

from statemachine_trainer.machine.board import SignalBoard
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.program import Probe, Work
from statemachine_trainer.machine.signals import Call, Moment
from statemachine_trainer.machine.subscription import Part, Subscription, label_of
from statemachine_trainer.observe.durations import Durations
from statemachine_trainer.observe.profile_table import as_html, as_table, as_text

if TYPE_CHECKING:
    from rich.table import Table


class SubscriberKey(NamedTuple):
    """Who is called, and for what.

    Attributes:
        receiver: Label of the receiver; with "when= of " before it, its condition.
        signal: What it subscribed to, as written.
    """

    receiver: str
    signal: str


class _Account:
    """The time that is being measured: what lies inside it is told apart from its own."""

    def __init__(self) -> None:
        self.inside = 0.0  # seconds measured already within what is being measured now
        self.ended: dict[str, tuple[float, float, int]] = {}  # by machine: time, `inside`, entry


class Profile:
    """Measures a run from now on: `trainer.profile()`.

    The time of a state is that of its own work. What its receivers take is theirs, and what remains
    between the end of one state's work and the begin of the next is the transition's: finding the
    edge, resetting fields, asking `every=`, writing a checkpoint at the boundary, and a microsecond or
    so of the profile's own. Time in which the run stands still counts nowhere.

    Times are those of the process. A GPU works on after the state that gave it the work; with
    `synchronize` each state waits for it, which is slower but shows where the time goes.

    A context manager: leaving the block stops it. What was measured stays.

    Args:
        drivers: The machines to measure.
        board: The board of their signals.
        synchronize: Wait for the device at the end of each state's work.
        clock: Tells the time in seconds, from any beginning.

    Attributes:
        states: Durations by path of the state.
        transitions: Durations of what lies between two states, receivers left out.
        subscribers: Durations by subscriber; those alike in name are one.
    """

    def __init__(
        self,
        drivers: Iterable[Driver],
        board: SignalBoard,
        *,
        synchronize: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.states: dict[str, Durations] = {}
        self.transitions = Durations()
        self.subscribers: dict[SubscriberKey, Durations] = {}
        self._drivers = tuple(drivers)
        self._account = _Account()
        self._clock = clock
        self._wait = _waiting() if synchronize else None
        self._annotated = False
        self._remove: list[Callable[[], None]] = [
            one.instrument(self._probe_of(one)) for one in self._drivers
        ]
        self._remove.append(board.instrument(self._around_call))

    # -- measuring -------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether it still measures."""
        return bool(self._remove)

    def stop(self) -> None:
        """Measure no more."""
        for remove in self._remove:
            remove()
        self._remove = []

    def annotate(self) -> None:
        """Name the states in traces of `torch.profiler` from now on."""
        if not self._annotated:
            self._annotated = True
            self._remove += [one.instrument(annotated) for one in self._drivers]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # -- looking ---------------------------------------------------------------------------------

    def heat(self) -> dict[str, float]:
        """Return how much of the time each state takes, relative to the one that takes most.

        For `trainer.graph().to_svg(heat=...)`: 1 is the hottest state. Loops are left out.
        """
        totals = {path: one.total for path, one in [*self.states.items()] if one.count}
        most = max(totals.values(), default=0.0)
        return {path: total / most if most else 0.0 for path, total in totals.items()}

    def table(self) -> Table:
        """Return the figures as a table of `rich`, what takes most time first."""
        return as_table(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as data that JSON can hold; times are in seconds."""
        return {
            "states": {path: one.to_dict() for path, one in [*self.states.items()] if one.count},
            "transitions": self.transitions.to_dict(),
            "subscribers": [
                {**key._asdict(), **one.to_dict()}
                for key, one in [*self.subscribers.items()]
                if one.count
            ],
        }

    def save(self, path: str | Path) -> None:
        """Write the figures to a JSON file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def __str__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)

    # -- probes ----------------------------------------------------------------------------------

    def _probe_of(self, driver: Driver) -> Probe:
        """Return the probe of one machine. Kept short: it is paid at each transition."""
        account, between, clock, wait = (
            self._account,
            self.transitions,
            self._clock,
            self._wait,
        )
        name = driver.name

        def around(path: str, work: Work) -> Work:
            durations = self.states.setdefault(path, Durations())

            def measured() -> object:
                begun = clock()
                ended = account.ended.get(name)
                if ended is not None and ended[2] == driver.entries:
                    between.add(begun - ended[0] - (account.inside - ended[1]))
                outer, account.inside = account.inside, 0.0
                try:
                    answer = work()
                    if wait is not None:
                        wait()
                    return answer
                finally:
                    done = clock()
                    durations.add(done - begun - account.inside)
                    account.inside = outer + done - begun
                    account.ended[name] = done, account.inside, driver.entries

            return measured

        return around

    def _around_call(self, subscription: Subscription, part: Part, call: Call) -> Call:
        label = label_of(subscription.receiver)
        key = SubscriberKey(label if part == "receiver" else f"when= of {label}", subscription.name)
        account, clock = self._account, self._clock

        def measured(sender: Any, moment: Moment) -> Any:
            durations = self.subscribers.get(key)
            if durations is None:
                durations = self.subscribers[key] = Durations()
            outer, account.inside = account.inside, 0.0
            begun = clock()
            try:
                return call(sender, moment)
            finally:
                took = clock() - begun
                durations.add(took - account.inside)
                account.inside = outer + took

        return measured


def annotated(path: str, work: Work) -> Work:
    """Give the work of a state its path as a name in traces of `torch.profiler`; a probe."""

    def named() -> object:
        with _recorded(path):
            return work()

    return named


def _recorded(path: str) -> AbstractContextManager[Any]:
    recorded: AbstractContextManager[Any] = torch.profiler.record_function(path)
    return recorded


def _waiting() -> Callable[[], None] | None:
    """Return what waits for the accelerator; None if there is none."""
    if not torch.accelerator.is_available():
        return None
    return torch.accelerator.synchronize
