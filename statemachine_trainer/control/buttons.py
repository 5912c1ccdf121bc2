"""What can be asked of a run from outside, and when: by its page, and by other processes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from statemachine_trainer.control.control_errors import NotNow
from statemachine_trainer.control.requests import BUTTONS
from statemachine_trainer.machine.errors import suggest
from statemachine_trainer.machine.loop import SEPARATOR

if TYPE_CHECKING:
    from statemachine_trainer.control.hold import Hold
    from statemachine_trainer.machine.driver import Driver

AT_STATES = ("break", "clear", "until")
"""Those that are said with the path of a state: hold before it whenever it comes, no longer, or once."""

POSTED = ("validate", "stop")
"""Those that post an event of that name."""


class Writer(Protocol):
    """What is known of the checkpoints of a run."""

    @property
    def last(self) -> Path | None:
        """The newest one that was written; None if there is none yet."""


class Kind(Protocol):
    """What a setting may be; its text says so."""

    @property
    def unit(self) -> str:
        """What it is a number of; "" if nobody has said."""
        ...


class Changeable(Protocol):
    """A setting that may be changed."""

    @property
    def kind(self) -> Kind:
        """What it may be."""

    @property
    def value(self) -> float | None:
        """What it is."""

    @property
    def refusal(self) -> str:
        """Why it cannot be changed now; "" if it can."""
        ...


class Steered(Protocol):
    """What the buttons need of a trainer."""

    @property
    def checkpoints(self) -> Writer | None:
        """What writes its checkpoints; None if nothing does."""

    def checkpoint(self) -> None:
        """Write one at the next boundary that can be written down."""

    def post(self, event: str, **values: object) -> None:
        """Post an event, which may carry values."""

    def changeable(self) -> Mapping[str, Changeable]:
        """Return the settings of the fit that may be changed, by name."""
        ...


class Buttons:
    """The buttons of a fit. Any event that its chart lets be posted can be pressed, too.

    Other threads call these methods, never the one that trains.

    Args:
        trainer: The trainer.
        driver: That of the fit.
        hold: What holds it.
    """

    def __init__(self, trainer: Steered, driver: Driver, hold: Hold) -> None:
        self._trainer = trainer
        self._driver = driver
        self._hold = hold

    def refusals(self) -> dict[str, str | None]:
        """Say of each button why it is greyed; None where it is not."""
        found = {name: self._refusal(name) for name in BUTTONS}
        for event in POSTED:
            if found[event] is None and not self._takers(event):
                found[event] = f"No state around here has an edge for {event!r}."
        return found

    def press(self, name: str) -> str:
        """Do what a button says, or post an event, which waits for a state that takes it.

        Beside the buttons there are `break PATH` (hold the run whenever it comes to this state),
        `clear PATH` (no longer) and `until PATH` (let it go on, and hold it there once).

        Returns:
            What becomes of it.

        Raises:
            NotNow: It cannot be done now, or there is no such button or event.
        """
        word, _, path = name.partition(" ")
        if path and word in AT_STATES:
            return self._press_at(word, path)
        if (why := self._refusal(name)) is not None:
            raise NotNow(why)
        if name in BUTTONS and name not in POSTED:
            action, told = {
                "pause": (
                    self._hold.hold,
                    "All ranks are held where they meet next."
                    if self._together
                    else "The run is held after its next boundary.",
                ),
                "step": (self._hold.step, "The run does the work of one state."),
                "continue": (self._hold.go_on, "The run goes on."),
                "checkpoint": (
                    self._trainer.checkpoint,
                    "A checkpoint is written at the next boundary that can be written down.",
                ),
            }[name]
            action()
            return told
        self._driver.post(name)
        held = " The run is held: it goes on with 'continue'." if self._hold.held else ""
        takers = self._takers(name) or self._takers(name, anywhere=True)
        return f"{name!r} is posted, for {_listed(takers)}.{held}"

    def _press_at(self, word: str, path: str) -> str:
        if path not in self._driver.program.nodes:
            known = suggest(path, self._driver.program.nodes)
            raise NotNow(f"There is no state {path!r} to hold the run at. {known}")
        if word == "clear":
            self._hold.clear(path)
            return f"The run is no longer held before {path}."
        if (why := self._unheld(alone=True)) is not None:
            raise NotNow(why)
        if word == "break":
            self._hold.break_at(path)
            return f"The run is held whenever it comes to {path}."
        self._hold.run_to(path)
        return f"The run goes on, and is held before {path}."

    def set(self, values: Mapping[str, object]) -> str:
        """Change settings of the fit.

        Returns:
            What becomes of it.

        Raises:
            NotNow: The run stands still.
            SettingError: There is no such setting, or it cannot have this value.
        """
        if not self._driver.running:
            raise NotNow(f"{self._refusal('checkpoint')}")
        self._trainer.post("set", **values)
        held = " The run is held: it goes on with 'continue'." if self._hold.held else ""
        return f"It is set at the next boundary that can be written down.{held}"

    def look(self) -> dict[str, Any]:
        """Return where the fit stands and what it would do, as data that JSON can hold."""
        driver, checkpoints = self._driver, self._trainer.checkpoints
        written = None if checkpoints is None else checkpoints.last
        stepping, held = self._hold.stepping, self._hold.held
        return {
            "state": held or driver.path,
            "held": held is not None,
            "stepping": stepping,
            "breaks": self._hold.stops,
            "until": self._hold.until,
            "running": driver.running,
            "outcome": driver.outcome,
            "together": self._together,
            "posted": driver.posted,
            "requested": driver.requested,
            "checkpoint": None if written is None else written.name,
            "events": sorted(driver.program.postable),
            "buttons": self.refusals(),
            "settings": {
                name: {
                    "value": one.value,
                    "kind": str(one.kind),
                    "unit": one.kind.unit,
                    "refusal": one.refusal,
                }
                for name, one in self._trainer.changeable().items()
            },
        }

    def _refusal(self, name: str) -> str | None:
        driver, hold = self._driver, self._hold
        if name not in BUTTONS and name not in driver.program.postable:
            known = (*BUTTONS, *driver.program.postable)
            return f"There is no button or event {name!r}. {suggest(name, known)}"
        if (why := self._unheld(alone=name == "step")) is not None:
            return why
        if name == "pause":
            return "The run is held already." if hold.asked_for else None
        if name == "step":
            return None if hold.held else "Only a run that is held can be stepped."
        if name == "continue":
            meeting = self._together and hold.asked_for and not hold.held
            going = (
                "The ranks have not met yet: say it when they are held."
                if meeting
                else "The run is going on."
            )
            return None if hold.asked_for and not meeting else going
        if name == "checkpoint":
            writes = self._trainer.checkpoints is not None
            return None if writes else "This trainer writes no checkpoints."
        return None

    def _idle(self) -> str | None:
        """Say why nothing can be asked of the run; None while it goes on, or is held."""
        if self._driver.running:
            return None
        ended = "The run has ended." if self._driver.path is None else "The run stands still."
        return f"{ended} It is in the hands of the program that began it."

    def _unheld(self, *, alone: bool = False) -> str | None:
        """Say why the run cannot be held; `alone` for what one of several ranks cannot do without the others."""
        if (why := self._idle()) is not None or not (alone and self._together):
            return why
        return (
            "Several ranks are held where they meet, once a batch, and not at a state of one's choice: one alone would "
            "leave the others waiting. `pause` holds all, `continue` lets all go on."
        )

    @property
    def _together(self) -> bool:
        """Whether this is one of several ranks, which hand on to each other what they are asked for."""
        return self._driver.post_to is not None

    def _takers(self, event: str, *, anywhere: bool = False) -> list[str]:
        """The states with an edge for a posted event, in the loops that the running state lies in.

        Such an event stays posted until one of them runs.
        """
        around = self._driver.path or ""
        return [
            path
            for path, node in self._driver.program.nodes.items()
            if event in node.posted
            and (anywhere or around.startswith(path.rpartition(SEPARATOR)[0] + SEPARATOR))
        ]


def _listed(paths: list[str]) -> str:
    return paths[0] if len(paths) == 1 else f"the first of {', '.join(paths)}"
