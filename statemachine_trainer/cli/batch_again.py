"""The work of one batch, done again and again from the same copy of the state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from statemachine_trainer.cli.places import CannotReplay
from statemachine_trainer.debugging.operations import Operation, OperationLog
from statemachine_trainer.machine.errors import UnknownSignal

if TYPE_CHECKING:
    from statemachine_trainer.trainer import Trainer


class BatchAgain:
    """The batch before which a fit stands, or the next one, to be done again and again.

    Args:
        trainer: The trainer.

    Attributes:
        where: Which batch it is, in words.

    Raises:
        CannotReplay: No batch comes any more, or the loops have no states `batch_start` and `batch_end`.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        try:
            trainer.driver.board.resolve("batch_end")
            if not f"{trainer.path}".endswith(".batch_start"):
                trainer.run("batch_start")
        except UnknownSignal:
            raise CannotReplay(
                "Operations are those between batch_start and batch_end, and the loops of this run have no such states."
            ) from None
        if trainer.path is None:
            raise CannotReplay("The run ends there: no batch comes after it.")
        counts = trainer.context.counts
        self.where = f"step {counts.step + 1} (batch {counts.batch + 1}, epoch {counts.epoch + 1})"
        trainer.remember(last=1, at="batch_start")
        # Once for what is only made the first time. Each time after it begins from the same copy.
        trainer.run("batch_end")

    def operations(self) -> list[Operation]:
        """Do the batch, and return its operations."""
        trainer = self._trainer
        trainer.rewind(1)
        with OperationLog(trainer.driver, trainer.context.model) as log:
            trainer.run("batch_end")
        return log.operations
