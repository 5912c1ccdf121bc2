"""The batch loop: one batch, whole or cut along time."""

from __future__ import annotations

from typing import Any, Literal

from statemachine_trainer.loops.base import TrainingLoop
from statemachine_trainer.loops.errors import SettingError
from statemachine_trainer.loops.optimizer import OptimizerLoop
from statemachine_trainer.loops.split import split_batch
from statemachine_trainer.machine.loop import Loop, place


class BatchLoop(TrainingLoop):
    """One batch: cut along time if asked for, each split handed to the optimizer loop.

    Truncated backpropagation through time: what the step returns as `hiddens` is detached and
    handed to the step of the next split. The model may cut batches itself with a method
    `split_batch(batch, split_steps)`.

    Args:
        split_steps: Time steps in a split; None for whole batches.
        time_dim: The dimension of time in the tensors of a batch.
        carry_hiddens: Hand the hiddens of a batch to the next one as well, until the epoch ends.
            For data in which each row of a batch goes on in the same row of the next (a long text
            cut into parallel streams): not shuffled, and all batches of one size.
        **loops: The loop for `optimizer`.

    Raises:
        SettingError: A setting of another type, or out of its range.
    """

    initial = "batch_start"
    transitions = (
        # event           source         destination
        ["batch_started", "batch_start", "batch_split"],
        ["split", "batch_split", "optimizer"],
        ["optimized", "optimizer", "batch_split"],
        ["batch_complete", "batch_split", "batch_end"],
    )
    outcomes = ("batch_done", "flushed")
    entries = {"flush": "optimizer"}

    optimizer: Loop = place(OptimizerLoop)

    def __init__(
        self,
        *,
        split_steps: int | None = None,
        time_dim: int = 1,
        carry_hiddens: bool = False,
        **loops: Any,
    ) -> None:
        super().__init__(**loops)
        if split_steps is not None and not _is_whole(split_steps, 1):
            raise SettingError(
                f"BatchLoop(split_steps={split_steps!r}): use a whole number from 1, or None."
            )
        if not _is_whole(time_dim, 0):
            raise SettingError(f"BatchLoop(time_dim={time_dim!r}): use a whole number from 0.")
        if not isinstance(carry_hiddens, bool):
            raise SettingError(f"BatchLoop(carry_hiddens={carry_hiddens!r}): say True or False.")
        self.split_steps = split_steps
        self.time_dim = time_dim
        self.carry_hiddens = carry_hiddens

    def batch_start(self) -> Literal["batch_started"]:
        """Cut the batch."""
        context = self.context
        context.split_idx = -1
        if context.kept_hiddens and (not self.carry_hiddens or context.counts.batch_in_epoch == 0):
            context.kept_hiddens.clear()
        if self.split_steps is None:
            context.splits = [context.batch]
        else:
            own = context.steps.split(context.batch, self.split_steps)
            context.splits = (
                own
                if own is not None
                else split_batch(context.batch, self.split_steps, self.time_dim)
            )
        return "batch_started"

    def batch_split(self) -> Literal["split", "batch_complete"]:
        """Take the next split; when none is left, the batch is done and is counted."""
        context = self.context
        index = context.split_idx + 1
        if index < len(context.splits) and not context.finished:
            context.split_idx = index
            context.split = context.splits[index]
            return "split"
        counts = context.counts
        counts.batch += 1
        counts.batch_in_epoch += 1
        if context.sample_size is not None:
            size = context.sample_size(context.batch) or 0
            counts.sample += size
            counts.sample_in_epoch += size
        return "batch_complete"

    def batch_end(self) -> Literal["batch_done"]:
        """Let go of the batch: only carried hiddens are kept beyond its step."""
        context = self.context
        context.batch = context.split = context.output = context.loss = None
        if context.kept_hiddens and not self.carry_hiddens:
            context.kept_hiddens.clear()
        context.splits = []
        return "batch_done"


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
