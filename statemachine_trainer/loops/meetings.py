"""The meetings of the ranks of a fit: what is posted at one rank is taken by all at one boundary.

Nothing here knows how the ranks talk to each other. They do so through a `Transport`: a process group,
or a network in the memory of one process, in which a test simulates many ranks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from statemachine_trainer.loops.base import training_loops
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.loop import SEPARATOR

_NONE_ASKED: Final = (0, False)

_GLANCE: Final = 0.2
"""Seconds between two checks whether ranks that are held may go on."""


class Transport(Protocol):
    """Exchanges the numbers of a meeting. All ranks call it in the same order, with as many numbers."""

    def begin_largest(self, values: Sequence[float]) -> Callable[[], list[float]]:
        """Begin to find the largest of each value over all ranks; never wait for another rank.

        Returns:
            A function that waits until the result has come, and returns it. It raises an error where a rank
            was lost, or does not answer in time.
        """
        ...

    def begin_hold(self) -> Callable[[bool], bool]:
        """Begin to stand still, as all ranks do; see `Ranks.begin_hold`."""
        ...


class Stoppable(Protocol):
    """Hears of signals of the operating system, and is asked for checkpoints."""

    def asked(self) -> tuple[int, bool]:
        """Return the number of the signal that came here, 0 for none; and whether a checkpoint is wanted."""

    def agreed(self, signum: int, wanted: bool) -> None:
        """Do what was asked for at any rank."""


class Differences(Protocol):
    """Tells of what one rank did and others did not."""

    @property
    def unsure(self) -> bool:
        """Whether this rank has to hear of the others before its next batch."""

    def tell(self) -> Sequence[float]:
        """Return five numbers; the largest of each over the ranks is heard."""

    def hear(self, heard: Sequence[float], *, ahead: bool = False) -> None:
        """Take what was told; `ahead` if the others hear it one meeting later, as this rank will once more."""


_NONE_TOLD: Final = (0.0,) * 5


class Meetings:
    """Makes the machines of all ranks take events from outside at the same boundary.

    The ranks meet where such events are taken. An event that is posted at one rank is posted at all, and
    a pause, a checkpoint or a signal that one was asked for is told to all. From batch to batch the answers of a
    meeting are read at the next one, so that no rank waits: what is posted is taken one meeting later.

    Args:
        transport: How the ranks talk to each other.
        driver: The machine of this rank. Its posted events come here from now on.
        checkpoints: Return what hears of signals and checkpoints; None where nothing does.
        differences: What tells of what one rank did and others did not; None if nothing does.
    """

    def __init__(
        self,
        transport: Transport,
        driver: Driver,
        checkpoints: Callable[[], Stoppable | None],
        differences: Differences | None = None,
    ) -> None:
        self._transport = transport
        self._differences = differences
        self._driver = driver
        self._checkpoints = checkpoints
        self._wishes: set[str] = set()
        self._pausing = False
        self._holding = False  # whether a hold was asked for here
        self._to_hold = False  # whether one was agreed on
        self._unwanted = False  # whether it is to end as it begins
        self._hold: Callable[[bool], bool] | None = None
        self._woken = threading.Event()
        self._heard = _NONE_ASKED
        self._asked: tuple[list[str], Callable[[], list[float]]] | None = None
        self._on_the_way: list[str] = []
        self._path = ""
        self._seconds = self._ran = 0.0
        self._read_at = time.monotonic()
        self._entries = driver.entries
        driver.post_to = self  # posted events go to all ranks

    def leave(self) -> None:
        """Let the machine take its posted events itself again, unless other meetings have begun."""
        if self._driver.post_to is self:
            self._driver.post_to = None

    def post(self, event: str) -> None:
        """Post an event to all ranks. After the end it does nothing.

        May be called from receivers, other threads and handlers of operating system signals.

        Raises:
            UnknownEvent: No loop takes it.
        """
        if event not in self._driver.program.postable:
            self._driver.post_here(event)  # raises an error that names the known events
        if self._driver.path is not None:
            self._wishes.add(event)

    def pause(self) -> None:
        """Pause the machines of all ranks at one boundary. May be called from anywhere, as `post`."""
        if self._driver.path is not None:
            self._pausing = True

    def hold(self) -> None:
        """Hold the machines of all ranks before the state at which they meet next. May be called from other threads."""
        if self._driver.path is not None:
            self._holding, self._unwanted = True, False

    def let_go(self) -> None:
        """Let the ranks that are held go on. May be called from other threads."""
        hold = self._hold
        self._unwanted = self._holding and hold is None  # it may be on its way
        if hold is not None:
            hold(True)
            self._woken.set()

    @property
    def held(self) -> str | None:
        """Path of the state before which the ranks are held; None if they are not."""
        return None if self._hold is None else self._path

    @property
    def asked_to_hold(self) -> bool:
        """Whether the ranks are held, or will be where they meet next, as far as this rank has heard."""
        return self._holding or self._to_hold

    def waiting(self) -> list[str]:
        """Return the events that were posted here and not agreed on yet."""
        return [*self._on_the_way, *self._wishes]

    def clock(self) -> float:
        """Return the seconds that the fit has run, as agreed at the last meeting."""
        return self._seconds

    def meet(self, path: str) -> None:
        """Exchange events with the other ranks, and handle those that were agreed on.

        If the machine returns to the state of the last meeting, as it does from batch to batch, the
        answers of that meeting are handled here, so that no rank waits.

        Args:
            path: Of the state that was entered.
        """
        again, self._path = path == self._path, path
        differences = self._differences
        stands = self._take()
        self._ask()
        if not again or stands:  # nothing is to be under way while the ranks stand still
            self._take()
        elif differences is not None and differences.unsure:
            self._take(ahead=True)
        if self._to_hold:
            self._stand_still()

    # -- parts -----------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Begin an exchange with the other ranks, and send the events of this rank."""
        checkpoints = self._checkpoints()
        if checkpoints is not None:
            self._hear(checkpoints)
        asked, self._heard = self._heard, _NONE_ASKED
        events = sorted(self._driver.program.postable)
        wishes = [event in self._wishes for event in events]
        self._on_the_way = [event for event, wished in zip(events, wishes, strict=True) if wished]
        for event in self._on_the_way:  # remove only these: a thread may have just posted others
            self._wishes.discard(event)
        pausing, self._pausing = self._pausing, False
        told = _NONE_TOLD if self._differences is None else self._differences.tell()
        # A hold is kept until it is agreed on, so that whoever asks for it hears that it is on its way.
        numbers = [self._read_clock(), *asked, pausing, self._holding, *told, *wishes]
        answer = self._transport.begin_largest(numbers)
        self._asked = events, answer

    def _take(self, *, ahead: bool = False) -> bool:
        """Handle what was agreed on in the last exchange, if there was one; return whether the ranks stop or pause.

        Args:
            ahead: Whether the other ranks do so one meeting later. Then only what differs is heard now.
        """
        if self._asked is None:
            return False
        (events, answer), self._asked = self._asked, None
        heard = answer()
        seconds, *told = heard
        if not ahead:
            self._seconds = seconds
        if not any(told):  # as in nearly every batch
            self._on_the_way = []
            return False
        signum, written, pausing, holding, *more = told
        differ, wishes = more[: len(_NONE_TOLD)], more[len(_NONE_TOLD) :]
        if self._differences is not None:
            self._differences.hear(differ, ahead=ahead)
        if ahead:
            self._asked = events, lambda: heard
            return False
        for event, wished in zip(events, wishes, strict=True):
            if wished:
                self._wishes.discard(event)  # all ranks may wish it, some a bit later
                self._driver.post_here(event)
        self._on_the_way = []
        checkpoints = self._checkpoints()
        if checkpoints is not None:
            checkpoints.agreed(int(signum), bool(written))
        if pausing:
            self._pausing = False  # all ranks may wish it, some a bit later
            self._driver.pause()
        ends = bool(signum or pausing)
        self._to_hold = not ends and (bool(holding) or self._to_hold)
        if ends:
            self._holding = False
        return bool(ends or holding)

    def _hear(self, checkpoints: Stoppable) -> None:
        """Note what this rank is asked for, until it can be told to the others."""
        signum, wanted = checkpoints.asked()
        self._heard = (signum or self._heard[0], wanted or self._heard[1])

    def _stand_still(self) -> None:
        """Wait until any rank is told to go on, or hears of a signal, which stops all where they meet next.

        The ranks wait in no collective meanwhile, so that it may take as long as somebody likes.
        """
        self._woken.clear()
        hold = self._hold = self._transport.begin_hold()
        checkpoints = self._checkpoints()
        ended = False
        try:
            while not ended:
                if checkpoints is not None:
                    self._hear(checkpoints)
                ended = hold(self._unwanted or bool(self._heard[0])) or self._woken.wait(_GLANCE)
        finally:
            self._hold, self._holding, self._to_hold, self._unwanted = None, False, False, False
            hold(True)  # whatever has ended it here: one alone would wait for the others
            self._read_at = time.monotonic()

    def _read_clock(self) -> float:
        """Return the seconds that this rank has run; time between two runs does not count."""
        before, self._read_at = self._read_at, time.monotonic()
        ran, self._entries = self._entries == self._driver.entries, self._driver.entries
        self._ran += self._read_at - before if ran else 0.0
        return self._ran


def meeting_points(driver: Driver) -> list[str]:
    """Return the states before which posted events may be taken; all states if there are none.

    States of evaluations are left out, because ranks may evaluate different numbers of batches.
    """
    evaluations = tuple(
        path + SEPARATOR
        for path, loop in training_loops(driver.root, driver.name)
        if loop.evaluates
    )
    nodes = driver.program.nodes
    paths = [path for path in nodes if not path.startswith(evaluations)]
    return [path for path in paths if nodes[path].posted] or paths
