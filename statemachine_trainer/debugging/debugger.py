"""What a trainer needs to be debugged: its breakpoints, and its memory of earlier boundaries."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from statemachine_trainer.debugging.breakpoints import Breakpoints
from statemachine_trainer.debugging.errors import NothingRemembered
from statemachine_trainer.debugging.memory import Memory, Rewound, StateOf
from statemachine_trainer.loops.evaluation import abandon_loops
from statemachine_trainer.loops.reopening import reopen
from statemachine_trainer.machine.driver import Driver

if TYPE_CHECKING:
    from statemachine_trainer.observe.recorder import Recorder


class Debugger:
    """The debugger of one fit.

    Args:
        driver: The machine of the fit.
        state_of: Returns the state of the fit.
        load: Lets the fit stand where a state was taken.

    Attributes:
        breakpoints: Places at which the fit pauses.
        memory: What `remember` keeps; None unless asked for.
        recorder: What records the run, and is rewound with it; None if nothing does.
    """

    def __init__(self, driver: Driver, state_of: StateOf, load: Callable[[Any], None]) -> None:
        self.breakpoints = Breakpoints(driver)
        self.memory: Memory | None = None
        self.recorder: Recorder | None = None
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
