"""The actions of a pass over the training data, written once for all loops.

`EpochLoop`, `BatchLoop`, the loops that step optimizers and `CustomLoop` differ only in when they
do these actions. Three states that run in every batch inline the usual case, to save calls:
`EpochLoop.fetch`, `OptimizerLoop.forward` and `OptimizerLoop.optimizer_step`. All other cases go
through here.
"""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import torch

from statemachine_trainer.loops.bare_calls import clear_gradients, take_step
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.metrics.sizes import UnclearBatchSize, why_unclear
from statemachine_trainer.loops.slots import OptimizerSlot, step_scaled, step_schedulers
from statemachine_trainer.machine.errors import level_of_caller


class HoldsBatch(Protocol):
    """A loop that fetches batches.

    Attributes:
        holding: Whether a batch was fetched but not moved to the device yet. It is tried again.
    """

    holding: bool


class EndsEpochs(Protocol):
    """A loop that ends epochs.

    Attributes:
        scheduled: Number of optimizers whose schedulers were already stepped at this end of an epoch.
    """

    scheduled: int


def begin_epoch(context: Context) -> None:
    """Begin an epoch: reset the counters within it, and average metrics from here on."""
    context.read_clock()
    context.counts.begin_epoch()
    context.stopping = context.finished = False
    if (
        context.train_metrics.over is not False
    ):  # else a receiver has logged a metric for this epoch already
        context.train_metrics.begin()
    context.log_table, context.log_suffix = context.train_metrics, ""


def end_epoch(loop: EndsEpochs, context: Context, *, over: bool, schedulers: bool = True) -> None:
    """Step the schedulers that count epochs, keep the epoch's metrics, and count the epoch.

    Args:
        loop: The loop. It remembers which schedulers were stepped before an error.
        context: The context of the run.
        over: Whether the pass over the data has ended. If not, a later fit continues from its position.
        schedulers: Whether to step the schedulers that count epochs.
    """
    context.read_clock()
    if schedulers:
        for slot in context.slots[loop.scheduled :]:
            step_schedulers(slot, "epoch", context.counts.epoch + 1, context)
            loop.scheduled += 1
    if over:
        context.train.close()
    context.keep_results(context.train_metrics.compute())
    context.train_metrics.over = True
    context.counts.epoch += 1
    loop.scheduled = 0


def move_batch(loop: HoldsBatch, context: Context) -> None:
    """Move the batch in flight to the device. If that fails, the loop keeps it for another try."""
    loop.holding = True
    if context.transfer is not None:
        context.batch = context.transfer(context.batch)
    loop.holding = False


def count_batch(context: Context) -> None:
    """Count the batch in flight, and its samples if an interval needs them."""
    context.counts.batch += 1
    context.counts.batch_in_epoch += 1
    if context.sample_size is not None:
        count_samples(context)


def count_samples(context: Context) -> None:
    """Count the samples of the batch in flight.

    Warns:
        UnclearBatchSize: The number of samples in the first batch is not clear.
    """
    assert context.sample_size is not None
    size = context.sample_size(context.batch) or 0
    if size and not context.counts.sample and (why := why_unclear(context.batch, size)):
        warnings.warn(
            f"Samples are counted, and {why}. So the first batch counts as {size}. Let intervals go by "
            "batches or steps if that is wrong.",
            UnclearBatchSize,
            stacklevel=level_of_caller(),
        )
    context.counts.sample += size
    context.counts.sample_in_epoch += size


def call_step(context: Context, batch: Any) -> Any:
    """Call the training step on a batch, or on a split of it, in the precision of the run."""
    if context.precision.autocasts:
        with context.precision.context():
            output = context.steps.training(batch, context.batch_idx)
    else:
        output = context.steps.training(batch, context.batch_idx)
    context.output = output
    return output


def loss_to_propagate(
    context: Context, slot: OptimizerSlot, loss: torch.Tensor, size: int = 1
) -> torch.Tensor:
    """Clear the gradients if a window begins; return the loss to propagate, scaled.

    Args:
        context: The context of the run.
        slot: The optimizer.
        loss: The loss, a scalar.
        size: Backward passes per step. The loss is divided by it.
    """
    if slot.window == 0:
        slot.size = size
        clear_gradients(slot.optimizer)
    if size > 1:
        loss = loss / size
    scaler = context.precision.scaler
    return loss if scaler is None else scaler.scale(loss)


def step_optimizer(context: Context, index: int) -> None:
    """Step an optimizer, through the gradient scaler if there is one, and count the step.

    Its schedulers that count steps are stepped, too. A step that the scaler skips because a
    gradient overflowed does not count: counters and schedulers stay.
    """
    slot, scaler = context.slots[index], context.precision.scaler
    if scaler is None:
        take_step(slot.optimizer)
    elif not step_scaled(slot, context.slots, scaler):
        return
    count_step(context, index)


def count_step(context: Context, index: int) -> None:
    """Count a step of an optimizer, and step its schedulers that count steps."""
    context.count_step(index)
    slot = context.slots[index]
    if slot.schedulers:
        step_schedulers(slot, "step", slot.steps, context)
