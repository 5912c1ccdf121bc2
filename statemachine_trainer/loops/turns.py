"""Whose turn it is where several optimizers share the batches."""

from __future__ import annotations

from collections.abc import Sequence

from statemachine_trainer.loops.optimizers import OptimizerSlot


class Turns:
    """Which optimizers work on a batch: all, or by their frequencies one after the other.

    Frequencies are counted over the run, so that they go on over the borders of epochs as
    schedulers do.
    """

    def __init__(self, slots: Sequence[OptimizerSlot]) -> None:
        frequencies = [slot.frequency for slot in slots if slot.frequency is not None]
        self.everybody: tuple[int, ...] = tuple(range(len(slots)))
        self._cycle = [i for i, frequency in enumerate(frequencies) for _ in range(frequency)]

    def at(self, batch: int) -> tuple[int, ...]:
        """Return the indices of the optimizers that work on the batch of this number in the run."""
        if not self._cycle:
            return self.everybody
        return (self._cycle[batch % len(self._cycle)],)
