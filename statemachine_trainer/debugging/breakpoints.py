"""Breakpoints: places and conditions at which a fit pauses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from statemachine_trainer.debugging.debugger_errors import BadBreakpoint
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.edges import Work
from statemachine_trainer.machine.loop import SEPARATOR
from statemachine_trainer.machine.signals import Moment, Subscription, adapt

ANYWHERE = "*"
"""Every state."""

Condition = Callable[..., Any]


class Breakpoint:
    """A place at which the fit pauses, usually before the work of a state that was entered.

    Attributes:
        number: Its number, from 1.
        name: Name of a signal, as `on` takes it; "*" for every state.
        once: Whether it is removed when it is met.
        hits: How often it was met.
    """

    def __init__(
        self,
        owner: Breakpoints,
        number: int,
        name: str,
        when: Condition | None,
        *,
        once: bool,
        text: str,
    ) -> None:
        self.number = number
        self.name = name
        self.once = once
        self.hits = 0
        self._owner = owner
        self._when = None if when is None else adapt(when, "when= of a breakpoint")
        self._text = text

    def remove(self) -> None:
        """Remove this breakpoint."""
        self._owner.remove(self)

    def holds(self, sender: Any, moment: Moment) -> bool:
        """Return whether to pause the fit at this moment."""
        if not self._owner.concerns(moment.path):
            return False
        return self._when is None or _is_true(self._when(sender, moment))

    def meet(self) -> None:
        """Pause the fit."""
        self.hits += 1
        self._owner.stop_at(self)

    def __str__(self) -> str:
        parts = ["every state" if self.name == ANYWHERE else self.name]
        parts += [f"if {self._text}"] if self._text else []
        parts += ["(once)"] if self.once else []
        return " ".join(parts)

    def __repr__(self) -> str:
        return f"<Breakpoint {self.number}: {self}, met {self.hits} times>"


class Breakpoints:
    """The breakpoints of one fit. Without any, a run costs nothing extra.

    Args:
        driver: The machine of the fit.

    Attributes:
        stopped_at: The breakpoint at which the machine is stopped; None once another state has worked.
    """

    def __init__(self, driver: Driver) -> None:
        self.stopped_at: Breakpoint | None = None
        self._driver = driver
        self._watches: dict[Breakpoint, Subscription] = {}
        self._made = 0
        self._remove_probe: Callable[[], None] | None = None

    def add(
        self, name: str | None, *, when: Condition | None, once: bool, text: str = ""
    ) -> Breakpoint:
        """Set a breakpoint; see `Trainer.breakpoint`.

        Args:
            name: Name of a signal; None for the entry of every state.
            when: A condition, called like a receiver. NaN, as a loss where there is none, is no.
            once: Remove it when it is met.
            text: The condition as it is shown.

        Raises:
            BadBreakpoint: Neither name nor condition was given, or the fit has no such place.
            UnknownSignal: Nothing has this name.
        """
        if name is None and when is None:
            raise BadBreakpoint(
                "A breakpoint needs a name, a condition or both: breakpoint('backward'), "
                "breakpoint(when=lambda trainer: trainer.loss > 10)."
            )
        place = ANYWHERE if name is None else name
        board = self._driver.board
        self.check_reachable(place)
        if when is not None and not text:
            text = getattr(when, "__qualname__", repr(when)).rpartition(".")[2]
        made = Breakpoint(self, self._made + 1, place, when, once=once, text=text)
        # A watch is called after all receivers, so the machine stops when all have been called.
        self._watches[made] = board.watch(place, made.meet, when=made.holds)
        self._made += 1
        if self._remove_probe is None:
            self._remove_probe = self._driver.instrument(self._leave)
        return made

    def check_reachable(self, name: str, what: str = "A breakpoint at") -> None:
        """Refuse the name of a signal that this fit never fires.

        Args:
            name: Name of a signal.
            what: What it was given for.

        Raises:
            BadBreakpoint: It is a signal of another machine, such as that of `test`.
            UnknownSignal: Nothing has this name.
        """
        found = [s.name.partition(":")[0] for s in self._driver.board.resolve(name)]
        if not any(self.concerns(path) for path in found):
            raise BadBreakpoint(
                f"{what} {name!r} is never met: that is {found[0]!r}, and only {self._driver.name!r} "
                "can be stepped."
            )

    def remove(self, which: Breakpoint | int) -> None:
        """Remove a breakpoint, or the one of a number.

        Raises:
            BadBreakpoint: There is no such breakpoint.
        """
        found = next((one for one in self._watches if which in (one, one.number)), None)
        if found is None:
            known = ", ".join(str(one.number) for one in self._watches)
            raise BadBreakpoint(
                f"There is no breakpoint {which!r}. "
                + (f"There are {known}." if known else "None is set.")
            )
        self._watches.pop(found).cancel()

    def __iter__(self) -> Iterator[Breakpoint]:
        """Iterate over them in the order in which they were set."""
        return iter([*self._watches])

    def __len__(self) -> int:
        return len(self._watches)

    def __repr__(self) -> str:
        return repr([*self])

    def concerns(self, path: str) -> bool:
        """Whether a path is one of this fit."""
        return path.partition(SEPARATOR)[0] == self._driver.name

    def stop_at(self, one: Breakpoint) -> None:
        """Pause the fit at a breakpoint."""
        self.stopped_at = one
        self._driver.pause()
        if one.once:
            self.remove(one)

    def _leave(self, _path: str, work: Work) -> Work:
        """A probe: once a state works, the machine has left the breakpoint."""

        def going_on() -> object:
            self.stopped_at = None
            if not self._watches and self._remove_probe is not None:
                self._remove_probe()
                self._remove_probe = None
            return work()

        return going_on


def _is_true(answer: Any) -> bool:
    """Return whether a condition holds. NaN is true in Python, but counts as false here."""
    return bool(answer) and not (isinstance(answer, float) and math.isnan(answer))
