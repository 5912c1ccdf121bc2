"""`every=` of a subscription, decided by the counters of the run instead of by firings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.every import (
    Every,
    IntervalError,
    Ticker,
    TickerState,
    parse_interval,
)
from statemachine_trainer.loops.metrics import batch_size_of


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
        """Tell whether the interval has passed since it was last due.

        Raises:
            IntervalError: Of samples, which are not counted here.
        """
        context = trainer.context
        if self.every.unit == "second":
            context.read_clock()
        elif self.every.unit == "sample":
            see_that_samples_are_counted(context, self.every)
        return self._ticker.due(context.counts)

    def state_dict(self) -> dict[str, Any]:
        """Return what the interval remembers."""
        return dict(self._ticker.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self._ticker.load_state_dict(cast(TickerState, state))

    def __repr__(self) -> str:
        return repr(self.every)


def see_that_samples_are_counted(context: Context, interval: Every) -> None:
    """Have samples counted, which takes time and is done where somebody asks for it only.

    Args:
        context: What the loops of the run share.
        interval: The interval that goes by samples.

    Raises:
        IntervalError: There were batches whose samples were not counted, or cannot be.
    """
    counts = context.counts
    if counts.sample or not counts.batch:
        if context.sample_size is None:
            context.sample_size = batch_size_of
        return
    if context.sample_size is None:
        raise IntervalError(
            f"{interval!r} goes by samples, and none were counted in {counts.batch} batch(es), since "
            "nobody asked for it when the fit began. Subscribe before the fit starts, or go by "
            "batches or steps."
        )
    raise IntervalError(
        f"{interval!r} goes by samples, and the batches do not tell how many they hold: there is no "
        f"tensor with a dimension in a {type(context.batch).__name__}. Go by batches or steps, or "
        "give batches as tensors, tuples, dicts or dataclasses of tensors."
    )
