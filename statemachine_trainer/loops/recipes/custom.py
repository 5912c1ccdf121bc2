"""The base of training loops written from scratch: the actions of training, in any order."""

from __future__ import annotations

from typing import Any, Literal

import torch

from statemachine_trainer.data import END
from statemachine_trainer.loops.bare_calls import run_backward
from statemachine_trainer.loops.base import TrainingLoop
from statemachine_trainer.loops.loop_errors import StepOutputError, TrainingError
from statemachine_trainer.loops.outputs import read_output
from statemachine_trainer.loops.verbs import (
    begin_epoch,
    call_step,
    count_batch,
    end_epoch,
    loss_to_propagate,
    move_batch,
    step_optimizer,
)


class OutOfTurn(TrainingError):
    """A loop written from scratch calls an action before the one that must come first."""


class CustomLoop(TrainingLoop):
    """Base of loops written from scratch: your own states call these methods to train.

    The loop decides in which order and how often. Each method keeps the counters, the metrics and
    the precision right, so callbacks, checkpoints and resuming work as with the loops of the
    package. Three states can be named in `transitions`: `epoch_start`, `fetch` and `epoch_end`. A
    batch has one split. Accumulation, clipping and turns of several optimizers are up to the loop.

    Use it in place of an epoch loop, where `FitLoop` handles limits, or alone.

    Example:
        class Plain(CustomLoop):
            initial = "epoch_start"
            transitions = [
                ["epoch_started", "epoch_start", "fetch"],
                ["fetched", "fetch", "update"],
                ["updated", "update", "fetch"],
                ["exhausted", "fetch", "epoch_end"],
            ]
            outcomes = ("epoch_done",)

            def update(self) -> Literal["updated"]:
                self.backward(self.training_loss())
                self.optimizer_step()
                self.end_batch()
                return "updated"

        Trainer(FitLoop(max_epochs=3, epoch=Plain())).fit(model, train)
    """

    holding: bool = False
    scheduled: int = 0

    # -- states ----------------------------------------------------------------------------------

    def epoch_start(self) -> Literal["epoch_started"]:
        """Begin a pass over the training data."""
        self.begin_pass()
        return "epoch_started"

    def fetch(self) -> Literal["fetched", "exhausted"]:
        """Get the next batch."""
        return "fetched" if self.next_batch() else "exhausted"

    def epoch_end(self) -> Literal["epoch_done"]:
        """Count the epoch."""
        self.end_pass()
        return "epoch_done"

    # -- words -----------------------------------------------------------------------------------

    def begin_pass(self) -> None:
        """Begin a pass over the training data, or continue an unfinished one.

        It is an epoch: metrics are averaged over it.
        """
        context = self.context
        begin_epoch(context)
        if context.train.phase not in ("begun", "running"):
            context.train.begin(context.counts.epoch)
        length = context.train.length
        context.counts.batches_per_epoch = length and length - context.train.position
        if not context.model.training:
            context.model.train()

    def next_batch(self) -> bool:
        """Get the next batch and move it to the device.

        Returns:
            False if the pass has ended, or a limit on steps was reached.

        Raises:
            OutOfTurn: `end_batch` was not called for the previous batch.
        """
        context = self.context
        if context.batch is not None and not self.holding:
            raise OutOfTurn(
                f"{type(self).__name__} asks for the next batch, and batch {context.batch_idx + 1} of epoch "
                f"{context.counts.epoch + 1} is still in flight. Say `self.end_batch()` when you are done "
                "with a batch, also with one that is left out: it counts it."
            )
        if context.finished:
            return False
        if not self.holding:
            batch = context.train.next_batch()
            if batch is END:
                return False
            context.batch = batch
        if self.holding or not context.train.moves:
            move_batch(self, context)
        context.split = context.batch
        context.batch_idx = context.counts.batch_in_epoch
        return True

    def training_loss(self, batch: Any = None) -> torch.Tensor:
        """Call the training step and return its loss.

        Call `backward` in the same state, because a graph cannot be saved. (Or mark the next state
        as `transient`.)

        Args:
            batch: The batch; by default the present one.

        Raises:
            StepOutputError: It returned no loss.
        """
        context = self.context
        output = call_step(context, context.batch if batch is None else batch)
        loss, _ = read_output(output, context.steps.takes_hiddens, context.model)
        if loss is None:
            raise StepOutputError(
                f"The training step returned no loss for batch {context.batch_idx + 1}, and "
                f"{type(self).__name__} needs one: return a loss, or leave the batch out of the data."
            )
        context.loss = loss
        return loss

    def backward(self, loss: torch.Tensor, optimizer: int = 0) -> None:
        """Run the backward pass of a loss. Gradients add up until the next step of the optimizer.

        Args:
            loss: The loss.
            optimizer: Number of the optimizer whose step follows.
        """
        context = self.context
        slot = context.slots[optimizer]
        run_backward(loss_to_propagate(context, slot, loss))
        slot.window += 1
        context.loss = context.output = None  # their graphs are gone

    def optimizer_step(self, optimizer: int = 0) -> None:
        """Step an optimizer and its schedulers that count steps, and count the step.

        Raises:
            OutOfTurn: `backward` was not called since its last step.
        """
        context = self.context
        if context.slots[optimizer].window == 0:
            raise OutOfTurn(
                f"{type(self).__name__} steps optimizer {optimizer}, which has no new gradients since its "
                f"last step (batch {context.batch_idx + 1} of epoch {context.counts.epoch + 1}). Say "
                f"`self.backward(loss{f', {optimizer}' if optimizer else ''})` first."
            )
        step_optimizer(context, optimizer)

    def end_batch(self) -> None:
        """Count the batch and drop it."""
        context = self.context
        count_batch(context)
        context.batch = context.split = context.output = context.loss = None

    def end_pass(self) -> None:
        """Count the epoch, keep its metrics, and step the schedulers that count epochs."""
        end_epoch(self, self.context, over=not self.context.finished)
