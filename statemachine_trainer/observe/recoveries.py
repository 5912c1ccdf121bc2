"""What a fit has recovered from: the error edges that it takes, and the batches that it passes over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.loop import SEPARATOR
from statemachine_trainer.machine.signals import Subscription

if TYPE_CHECKING:
    from statemachine_trainer.loops.recipes.recover import RecoverLoop

Note = Callable[[str, Mapping[str, Any]], None]


def watch_recoveries(driver: Driver, note: Note) -> list[Callable[[], None]]:
    """Call `note(kind, facts)` at each error edge that is taken, and each time a `RecoverLoop` goes back.

    Args:
        driver: The machine of the fit, with the loops that it has now.
        note: Called with "error" or "recovery", and what is known about it.

    Returns:
        Functions that end it.
    """

    def error() -> None:
        if driver.failure is not None:
            note("error", driver.failure.state_dict())

    def recovery(loop: RecoverLoop) -> None:
        note("recovery", loop.history[-1])

    edges = [(plan.path, one) for plan in driver.machine.plan.walk() for one in plan.transitions]
    names = {f"{path}{SEPARATOR}{one.source}:{one.event}" for path, one in edges if one.error}
    watches = [driver.board.watch(name, error) for name in sorted(names)]
    if any(one.event == "rolled_back" for _, one in edges):
        watches += _of_loops(driver, recovery)
    return [one.cancel for one in watches]


def _of_loops(driver: Driver, recovery: Callable[[RecoverLoop], None]) -> Iterator[Subscription]:
    # Imported where there is one: most fits have none, and start sooner.
    from statemachine_trainer.loops.recipes.recover import RecoverLoop

    for path, loop in driver.root.walk(driver.name):
        if isinstance(loop, RecoverLoop):
            name = f"{path}.roll_back:rolled_back"
            yield driver.board.watch(name, lambda loop=loop: recovery(loop))
