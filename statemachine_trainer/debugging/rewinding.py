"""The debugger of a fit: its breakpoints, and copies of earlier boundaries to go back to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from statemachine_trainer.debugging.breakpoints import Breakpoints
from statemachine_trainer.debugging.debugger_errors import NothingRemembered
from statemachine_trainer.intervals import epoch_in_words
from statemachine_trainer.loops.base import abandon_loops
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.fresh_start import reopen
from statemachine_trainer.loops.settings_checks import whole_number
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.loop import SEPARATOR
from statemachine_trainer.machine.signals import Moment
from statemachine_trainer.snapshot.written import Written

StateOf = Callable[[], dict[str, Any]]


class Record(Protocol):
    """A record of a run that is rewound with it."""

    def place(self) -> Any:
        """Return the position of the record, for `rewind_to`."""

    def rewind_to(self, place: Any) -> None:
        """Remove the entries after a position."""


@dataclass(frozen=True, eq=False)
class Remembered:
    """A boundary in memory, saved as in a checkpoint.

    Attributes:
        transitions: Transitions since the memory began.
        path: Path of the state about to run there; None at the end.
        epoch: Number of the epoch, from 0; the text counts from 1.
        step: Optimizer steps that were done.
        recorded: Where the record of the run stood.
    """

    transitions: int
    path: str | None
    epoch: int
    step: int
    recorded: Any
    _state: Written

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return self._state.size

    def tree(self) -> dict[str, Any]:
        """Return a new copy of the state: a run takes over the tensors that it loads."""
        return self._state.tree()

    def __repr__(self) -> str:
        where = "the end" if self.path is None else self.path
        return f"<{self.transitions}: {where}, {epoch_in_words(self.path, self.epoch)}, step {self.step}>"


@dataclass(frozen=True)
class Rewound:
    """What a rewind has done. As text it says so.

    Attributes:
        asked: Transitions that it was asked to go back.
        back: Transitions that it went back: more, where no boundary was kept at that place.
        path: Path of the state about to run.
        epoch: Number of the epoch, from 0; the text counts from 1.
        step: Optimizer steps done.
    """

    asked: int
    back: int
    path: str | None
    epoch: int
    step: int

    def __str__(self) -> str:
        count = f"{self.back} transition{'s' if self.back != 1 else ''}"
        epoch = epoch_in_words(self.path, self.epoch)
        text = f"went back {count}: before {self.path}, {epoch}, step {self.step}"
        if self.back != self.asked:
            text += f" (the nearest boundary kept that is at least {self.asked} back)"
        return text


class Memory:
    """Keeps the last boundaries of a fit: `trainer.remember()`.

    Each costs as much as a checkpoint: the time to copy the whole state, and its size on the CPU's
    memory.

    Args:
        driver: The machine of the fit.
        state_of: Returns the state of the fit.
        last: How many are kept.
        at: Name or pattern of the signals after which a boundary is kept. Where it is transient,
            the next one that is not is.
        recorder: What records the run, if anything does.

    Raises:
        SettingError: `last` is no whole number from 1.
        UnknownSignal: Nothing is called `at`.
    """

    def __init__(
        self,
        driver: Driver,
        state_of: StateOf,
        *,
        last: int,
        at: str,
        recorder: Record | None = None,
    ) -> None:
        last = whole_number("remember", "last", last, 1)
        self._driver = driver
        self._state_of = state_of
        self._recorder = recorder
        self._kept: deque[Remembered] = deque(maxlen=last)
        self._transitions = 0
        self._of: object = driver.context
        self._waits = False  # whether a boundary is to be kept that is not reached yet
        board, root = driver.board, driver.name
        names = {signal.name for signal in board.resolve(at)}
        self._at = frozenset(one for one in names if one.startswith((f"{root}.", f"{root}:")))
        self._watch = board.watch("*:*", self._hear)
        if driver.context is not None and driver.path is not None:
            self._want()

    def __iter__(self) -> Iterator[Remembered]:
        """Iterate over what is kept, the oldest first."""
        return iter([*self._kept])

    def __len__(self) -> int:
        return len(self._kept)

    def __repr__(self) -> str:
        size = sum(one.size for one in self._kept)
        return f"<Memory of {len(self._kept)} boundaries, {size / 2**20:.1f} MiB>"

    def stop(self) -> None:
        """Stop keeping boundaries, and forget them."""
        self._watch.cancel()
        self._kept.clear()
        self._waits = False

    def find(self, back: int) -> tuple[Remembered, int]:
        """Return the boundary to go back to, and how many transitions back it is.

        Args:
            back: Number of transitions to go back. If no boundary was kept there, the nearest
                earlier one is used.

        Raises:
            NothingRemembered: No boundary so far back was kept.
            SettingError: `back` is not a whole number from 0.
        """
        back = whole_number("rewind", "transitions", back)
        self._forget_other_fits()
        target = self._transitions - back
        found = next((one for one in reversed(self._kept) if one.transitions <= target), None)
        if found is not None:
            return found, self._transitions - found.transitions
        if not self._kept:
            raise NothingRemembered(
                "No boundary was kept yet: boundaries are kept from `remember()` on, at the names "
                "given there."
            )
        most = self._transitions - self._kept[0].transitions
        raise NothingRemembered(
            f"There is no boundary {back} transitions back: the oldest that is kept is {most} back. "
            "Ask for less, or keep more with `remember(last=...)`."
        )

    def stand_at(self, one: Remembered) -> None:
        """Forget the boundaries after this one, because the machine is there again."""
        self._transitions = one.transitions
        self._waits = False
        while self._kept and self._kept[-1].transitions > one.transitions:
            self._kept.pop()

    def _hear(self, moment: Moment) -> None:
        if moment.path.partition(SEPARATOR)[0] != self._driver.name:
            return
        if moment.event is None and moment.path == self._driver.name:  # a fit begins
            self._kept.clear()
            self._transitions, self._of, self._waits = 0, self._driver.context, False
        elif moment.kind == moment.event:  # one of them for each transition
            self._transitions += 1
        if moment.signal in self._at:
            self._want()

    def _want(self) -> None:
        # Requests are forgotten where a state is loaded.
        if not self._waits or not self._driver.requested:
            self._waits = True
            self._driver.at_boundary(self._keep)

    def _keep(self) -> None:
        if not self._waits:  # stopped or moved meanwhile
            return
        self._waits = False
        self._forget_other_fits()
        if self._kept and self._kept[-1].transitions == self._transitions:
            return
        state = Written.of(self._state_of())
        context: Context = self._driver.context
        counts = context.counts
        self._kept.append(
            Remembered(
                self._transitions,
                self._driver.path,
                counts.epoch,
                counts.step,
                None if self._recorder is None else self._recorder.place(),
                state,
            )
        )

    def _forget_other_fits(self) -> None:
        if self._of is not self._driver.context:
            self._kept.clear()
            self._of = self._driver.context


class Debugger:
    """The debugger of one fit.

    Args:
        driver: The machine of the fit.
        state_of: Returns the state of the fit.
        load: Restores a state of the fit.

    Attributes:
        breakpoints: Places at which the fit pauses.
        memory: What `remember` keeps; None unless asked for.
        recorder: What records the run, and is rewound with it; None if nothing does.
    """

    def __init__(self, driver: Driver, state_of: StateOf, load: Callable[[Any], None]) -> None:
        self.breakpoints = Breakpoints(driver)
        self.memory: Memory | None = None
        self.recorder: Record | None = None
        self._driver = driver
        self._state_of = state_of
        self._load = load

    def remember(self, *, last: int, at: str) -> Memory:
        """Keep boundaries from now on, in place of those kept until now."""
        memory = Memory(self._driver, self._state_of, last=last, at=at, recorder=self.recorder)
        if self.memory is not None:
            self.memory.stop()
        self.memory = memory
        return memory

    def rewind(self, transitions: int) -> Rewound:
        """Go back to an earlier boundary.

        Raises:
            NothingRemembered: None was kept that is so far back.
        """
        if self.memory is None:
            raise NothingRemembered(
                "Nothing was remembered: call `trainer.remember()` first, and go on from there."
            )
        found, back = self.memory.find(transitions)
        abandon_loops(self._driver.root)
        reopen(self._driver.context)
        self._load(found.tree())
        self.memory.stand_at(found)
        if self.recorder is not None:
            self.recorder.rewind_to(found.recorded)
        self.breakpoints.stopped_at = None
        return Rewound(transitions, back, found.path, found.epoch, found.step)
