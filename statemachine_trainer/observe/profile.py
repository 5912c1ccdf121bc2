"""The profile of a run: how long each state works, and what lies between the states."""

from __future__ import annotations

import io
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from html import escape
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import torch

from statemachine_trainer.control.processes import rank_of_process, ranks_of_run
from statemachine_trainer.machine.board import SignalBoard
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.edges import Work
from statemachine_trainer.machine.loop import SEPARATOR
from statemachine_trainer.machine.program import Probe
from statemachine_trainer.machine.signals import Call, Moment, Part, Subscription, label_of

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
        rank: The rank that was measured, which is this process; None in a run of one process.
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
        self.rank = None if ranks_of_run() == 1 else rank_of_process()
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
        """Return the figures as data that JSON can hold; times are in seconds.

        Of several ranks, with the rank that they are of.
        """
        return {
            **({} if self.rank is None else {"rank": self.rank}),
            "states": {path: one.to_dict() for path, one in [*self.states.items()] if one.count},
            "transitions": self.transitions.to_dict(),
            "subscribers": [
                {**key._asdict(), **one.to_dict()}
                for key, one in [*self.subscribers.items()]
                if one.count
            ],
        }

    def save(self, path: str | Path) -> None:
        """Write the figures to a JSON file.

        Each rank of a run writes its own: `profile.save(f"profile-{profile.rank}.json")`. `profiles_side_by_side`
        reads them.
        """
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


# -- Durations in bounded memory ------------------------------------------------------------------

_PER_E: Final = 25
"""Buckets between a duration and one e times as long: a quantile is right within 2 %."""

_SHORTEST: Final = 1e-8


class Durations:
    """Counts durations in buckets that grow with them.

    Nothing is drawn at random, so that measuring leaves the generators of random numbers alone.

    Attributes:
        count: How many.
        total: Their sum, in seconds.
        longest: The longest, in seconds.
    """

    __slots__ = ("_buckets", "count", "longest", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.longest = 0.0
        self._buckets: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Take in a duration."""
        self.count += 1
        self.total += seconds
        if seconds > self.longest:
            self.longest = seconds
        # Clocks may answer zero, and subtraction a little less.
        self._buckets[int(math.log(max(seconds, _SHORTEST) / _SHORTEST) * _PER_E)] += 1

    @property
    def mean(self) -> float:
        """The mean in seconds; 0 of none."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """Return the duration that a share of them does not exceed, within 2 %; 0 of none.

        Args:
            share: Between 0 and 1; 0.95 for the 95th percentile.
        """
        if self.count == 1:
            return self.longest
        buckets = dict(self._buckets)  # a copy: others may look while it is written
        left = share * sum(buckets.values())
        for bucket in sorted(buckets):
            left -= buckets[bucket]
            if left <= 1e-9:
                middle = _SHORTEST * math.exp((bucket + 0.5) / _PER_E)
                return min(middle, self.longest)
        return self.longest

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as data that JSON can hold, in seconds."""
        return {
            "count": self.count,
            "total": self.total,
            "mean": self.mean,
            "p95": self.quantile(0.95),
            "longest": self.longest,
        }


# -- The profile as a table -----------------------------------------------------------------------

_HEADINGS = ("", "count", "total", "mean", "p95", "share")
_WIDTH = 120


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        group: "states", "between states" or "subscribers".
        name: What was measured.
        durations: How long it took.
        share: Of all time that was measured.
    """

    group: str
    name: str
    durations: Durations
    share: float

    def cells(self) -> tuple[str, ...]:
        """Return the figures as text."""
        d = self.durations
        times = (d.total, d.mean, d.quantile(0.95))
        return (str(d.count), *map(in_words, times), f"{self.share:.1%}")


def rows_of(profile: Profile) -> list[Row]:
    """Return the lines of a profile: states, transitions, subscribers; the longest first in each."""
    found = [*_named(profile)]
    whole = sum(one.total for _, _, one in found) or 1.0
    return [Row(group, name, one, one.total / whole) for group, name, one in found]


def as_table(profile: Profile) -> Table:
    """Return a profile as a table of `rich`."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    first = _HEADINGS[0] if profile.rank is None else f"rank {profile.rank}"
    table.add_column(first, overflow="fold")
    for heading in _HEADINGS[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    group = ""
    for row in rows_of(profile):
        if row.group != group:
            if group:
                table.add_section()
            group = row.group
            table.add_row(f"[bold]{group}[/bold]")
        table.add_row(Text(f"  {row.name}"), *row.cells())
    return table


def as_text(profile: Profile) -> str:
    """Return a profile as a table of plain characters."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=_WIDTH, color_system=None)
    console.print(profile.table())
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def as_html(profile: Profile) -> str:
    """Return a profile as a table for a notebook."""
    first = _HEADINGS[0] if profile.rank is None else f"rank {profile.rank}"
    headings = "".join(f"<th>{heading}</th>" for heading in (first, *_HEADINGS[1:]))
    lines = ["<table>", f"<tr>{headings}</tr>"]
    group = ""
    for row in rows_of(profile):
        if row.group != group:
            group = row.group
            lines.append(
                f'<tr><th colspan="{len(_HEADINGS)}" style="text-align:left">{group}</th></tr>'
            )
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row.cells())
        lines.append(f'<tr><td style="text-align:left">{escape(row.name)}</td>{cells}</tr>')
    return "\n".join([*lines, "</table>"])


def in_words(seconds: float) -> str:
    """Write a duration with three digits and the unit that suits it.

    >>> in_words(12.0), in_words(0.00345), in_words(0.0000042)
    ('12 s', '3.45 ms', '4.2 µs')
    """
    units = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}
    unit = next((name for name, size in units.items() if seconds >= size), "µs")
    value = seconds / units[unit]
    return f"{value:.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"


def _named(profile: Profile) -> Iterator[tuple[str, str, Durations]]:
    states = [(path, one) for path, one in [*profile.states.items()] if one.count]
    for path, one in _longest_first(states):
        yield "states", f"{path} (wait for data)" if _waits_for_data(path) else path, one
    if profile.transitions.count:
        yield "between states", "transitions and boundaries", profile.transitions
    heard = [
        (f"{key.receiver} on {key.signal}", one)
        for key, one in [*profile.subscribers.items()]
        if one.count
    ]
    for name, one in _longest_first(heard):
        yield "subscribers", name, one


def _longest_first(found: list[tuple[str, Durations]]) -> list[tuple[str, Durations]]:
    return sorted(found, key=lambda pair: -pair[1].total)


def _waits_for_data(path: str) -> bool:
    """Whether a state reads the next batch: its time is the wait for the loader."""
    name = path.rpartition(SEPARATOR)[2]
    return name == "fetch" or name.endswith("_fetch")
