"""`every=` of a subscription, decided by the counters of the run instead of by firings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.every import Ticker, TickerState, parse_interval


class HasContext(Protocol):
    """A trainer, as far as an interval looks at it."""

    @property
    def context(self) -> Context:
        """What the loops of the run share."""
        ...


class CountedInterval:
    """An interval over the counters of a run, such as `every(50, "step")` or "10min".

    Args:
        every: Whatever `parse_interval` takes.

    Attributes:
        every: The interval.
    """

    def __init__(self, every: object) -> None:
        self.every = parse_interval(every, "every")
        self._ticker = Ticker(self.every)

    def due(self, trainer: HasContext) -> bool:
        """Tell whether the interval has passed since it was last due."""
        context = trainer.context
        if self.every.unit == "second":
            context.read_clock()
        return self._ticker.due(context.counts)

    def state_dict(self) -> dict[str, Any]:
        """Return what the interval remembers."""
        return dict(self._ticker.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self._ticker.load_state_dict(cast(TickerState, state))

    def __repr__(self) -> str:
        return repr(self.every)
