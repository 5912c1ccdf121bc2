"""Iteration over the transitions of a running machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from statemachine_trainer.machine.errors import BadReceiver
from statemachine_trainer.machine.signals import ENTER, Moment
from statemachine_trainer.machine.subscription import adapt

if TYPE_CHECKING:
    from statemachine_trainer.machine.driver import Driver
    from statemachine_trainer.machine.program import Edge

Until = str | Callable[..., Any] | None


def check_until(until: object) -> None:
    """Refuse what tells no place to stop at.

    Raises:
        BadReceiver: It is neither a name nor a function.
    """
    if not (until is None or isinstance(until, str) or callable(until)):
        raise BadReceiver(
            f"until={until!r}: give the name of a signal, such as 'validation', or a condition of "
            "`(trainer, moment)`."
        )


class Moments(Iterator[Moment]):
    """Makes one transition of a driver per item.

    Not a generator, so that no StopIteration of user code can end it.
    """

    def __init__(self, driver: Driver, until: Until) -> None:
        check_until(until)
        self._driver = driver
        self._ended = False
        self._until = until
        self._condition = None if until is None or isinstance(until, str) else adapt(until, "until")
        if isinstance(until, str):
            driver.board.resolve(until)

    def __next__(self) -> Moment:
        driver = self._driver
        if self._ended or (driver.path is None and not driver.transient):
            raise StopIteration
        edge = driver.advance()
        if edge is None:
            raise StopIteration
        self._ended = self._is_met(edge) or driver.take_pause()
        return edge.moment

    def _is_met(self, edge: Edge) -> bool:
        moments = [emission.moment for emission in edge.emissions()]
        if self._condition is not None:
            driver = self._driver
            entries = (moment for moment in moments if moment.kind == ENTER)
            return any(self._condition(driver.sender, moment) for moment in entries)
        if isinstance(self._until, str):
            names = {signal.name for signal in self._driver.board.resolve(self._until)}
            return any(moment.signal in names for moment in moments)
        return False
