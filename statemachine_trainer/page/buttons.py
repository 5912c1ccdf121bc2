"""What can be asked of a run from the page, and when."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from statemachine_trainer.machine.loop import SEPARATOR
from statemachine_trainer.page.errors import NotNow
from statemachine_trainer.page.tally import Tally

if TYPE_CHECKING:
    from statemachine_trainer.machine.driver import Driver
    from statemachine_trainer.trainer import Trainer

BUTTONS = ("pause", "step", "continue", "validate", "checkpoint", "stop")
"""Their names, in the order in which they are shown."""

_POSTED = ("validate", "stop")


def refusals(trainer: Trainer, driver: Driver, tally: Tally) -> dict[str, str | None]:
    """Say of each button why it is greyed; None where it is not."""
    if not driver.running:
        ended = "The run has ended." if driver.path is None else "The run stands still."
        return dict.fromkeys(BUTTONS, f"{ended} It is in the hands of the program that began it.")
    held = tally.held is not None
    found: dict[str, str | None] = {
        "pause": "The run is held already." if held else None,
        "step": None if held else "Only a run that is held can be stepped.",
        "continue": None if held else "The run is going on.",
        "checkpoint": None
        if trainer.checkpoints is not None
        else "This trainer writes no checkpoints.",
    }
    for event in _POSTED:
        takes = next(_states_that_take(driver, event), None)
        found[event] = None if takes else f"No state around here has an edge for {event!r}."
    return {name: found[name] for name in BUTTONS}


def press(name: str, trainer: Trainer, driver: Driver, tally: Tally) -> None:
    """Do what a button says.

    Raises:
        NotNow: It is greyed, or there is no such button.
    """
    if name not in BUTTONS:
        raise NotNow(f"There is no button {name!r}; there are {', '.join(BUTTONS)}.")
    if (why := refusals(trainer, driver, tally)[name]) is not None:
        raise NotNow(why)
    if name in _POSTED:
        driver.post(name)
    else:
        {
            "pause": tally.hold,
            "step": tally.step,
            "continue": tally.go_on,
            "checkpoint": trainer.checkpoint,
        }[name]()


def _states_that_take(driver: Driver, event: str) -> Iterator[str]:
    """The states with an edge for a posted event, in the loops that the running state lies in.

    Such an event stays posted until one of them runs.
    """
    around = driver.path or ""
    for path, node in driver.program.nodes.items():
        if event in node.posted and around.startswith(path.rpartition(SEPARATOR)[0] + SEPARATOR):
            yield path
