"""Holding a run before a state, and letting it work one state at a time."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from statemachine_trainer.machine.edges import Work

if TYPE_CHECKING:
    from statemachine_trainer.machine.driver import Driver

_GLANCE = 0.2
"""Seconds between two checks whether a held run may go on."""


class Hold:
    """Holds the machine of a driver; asked by other threads, obeyed by the one that trains.

    A run that nobody holds pays nothing. To hold it, a probe is put around its states at the next
    boundary that can be written down; when the run goes on, the probe is taken off. The training
    thread does both itself, so that a probe which it sets at the same moment is not lost.

    Each driver has one (`of`): a run that its page holds can be let go by another process.
    """

    _of: ClassVar[weakref.WeakKeyDictionary[Driver, Hold]] = weakref.WeakKeyDictionary()

    def __init__(self, driver: Driver) -> None:
        self._driver = weakref.proxy(driver)  # kept by it, and not the other way round
        self._holding = False  # whether the run is to be held
        self._held: str | None = None
        self._steps = 0
        self._stops: set[str] = set()  # hold before each of these, whenever it comes
        self._until: str | None = None  # hold before this one, once
        self._turn = threading.Condition()
        self._take_off: Callable[[], None] | None = None

    @classmethod
    def of(cls, driver: Driver) -> Hold:
        """Return the one of a driver."""
        return cls._of.setdefault(driver, cls(driver))

    @property
    def held(self) -> str | None:
        """Path of the state before which the run is held; None if it is not."""
        together = self._driver.post_to
        return self._held if together is None else self._held or together.held

    @property
    def stepping(self) -> bool:
        """Whether it was told to step and has not yet; asked before `held`, that is the state after it."""
        return self._steps > 0

    @property
    def asked_for(self) -> bool:
        """Whether the run is held, or will be before one of its next states."""
        together = self._driver.post_to
        return self._holding or (together is not None and together.asked_to_hold)

    @property
    def stops(self) -> list[str]:
        """Paths of the states before which the run is held whenever it comes to them."""
        return sorted(self._stops)

    @property
    def until(self) -> str | None:
        """Path of the state before which the run will be held once; None if there is none."""
        return self._until

    def hold(self) -> None:
        """Hold the run before the state that follows its next boundary; of several ranks all, where they meet next."""
        together = self._driver.post_to
        if together is not None:
            together.hold()
            return
        with self._turn:
            if self._holding:
                return
            self._holding = True
        self._driver.at_boundary(self._put_on)

    def break_at(self, path: str) -> None:
        """Hold the run before a state, whenever it comes to it."""
        with self._turn:
            self._stops.add(path)
        self._driver.at_boundary(self._put_on)

    def clear(self, path: str) -> None:
        """Hold it there no longer. A run that stands there stays held until it goes on."""
        with self._turn:
            self._stops.discard(path)

    def run_to(self, path: str) -> None:
        """Let the run go on, and hold it before a state when it comes to it."""
        with self._turn:
            self._until = path
        self._driver.at_boundary(self._put_on)
        self.go_on()

    def step(self) -> None:
        """Let a held run do one state's work."""
        with self._turn:
            self._steps += 1
            self._turn.notify_all()

    def go_on(self) -> None:
        """Let the run go on, to the next state before which it is to be held."""
        with self._turn:
            self._holding, self._steps = False, 0
            self._turn.notify_all()
        together = self._driver.post_to
        if together is not None:
            together.let_go()

    def let_go(self) -> None:
        """Let the run go on and hold it nowhere: nobody is left who could let it go."""
        with self._turn:
            self._stops.clear()
            self._until = None
        self.go_on()

    # -- in the training thread ------------------------------------------------------------------

    @property
    def _needed(self) -> bool:
        return self._holding or bool(self._stops) or self._until is not None

    def _put_on(self) -> None:
        if self._needed and self._take_off is None:
            self._take_off = self._driver.instrument(self._probe)

    def _probe(self, path: str, work: Work) -> Work:
        def held() -> object:
            self._wait(path)
            return work()

        return held

    def _wait(self, path: str) -> None:
        try:
            with self._turn:
                if path == self._until or path in self._stops:
                    self._holding, self._until = True, None
                self._held = path if self._holding else None
                # A signal of the operating system asks for a checkpoint at the next boundary: a
                # held run must reach one.
                while self._holding and not self._steps and not self._driver.requested:
                    self._turn.wait(_GLANCE)
                self._held = None
                self._steps = max(0, self._steps - 1)
        except BaseException:  # Ctrl-C that nobody handles
            self._holding = False
            raise
        finally:
            self._held = None
            if not self._needed and self._take_off is not None:
                self._take_off()
                self._take_off = None
