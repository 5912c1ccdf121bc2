"""Whose turn it is where several optimizers share the batches."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from statemachine_trainer.loops.optimizers import OptimizerSlot


class Turns:
    """Which optimizers work on a batch: all, or by their frequencies one after the other.

    Frequencies are counted over the run, so that they go on over the borders of epochs as
    schedulers do.

    Args:
        slots: The optimizers.
        only: Indices of those that work at all; None for all of them.
    """

    def __init__(self, slots: Sequence[OptimizerSlot], only: Collection[int] | None = None) -> None:
        frequencies = [slot.frequency for slot in slots if slot.frequency is not None]
        at_work = [i for i in range(len(slots)) if only is None or i in only]
        self.everybody: tuple[int, ...] = tuple(at_work)
        self._cycle = [i for i in at_work if frequencies for _ in range(frequencies[i])]

    def at(self, batch: int) -> tuple[int, ...]:
        """Return the indices of the optimizers that work on the batch of this number in the run."""
        if not self._cycle:
            return self.everybody
        return (self._cycle[batch % len(self._cycle)],)
