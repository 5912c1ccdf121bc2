"""The optimizer loop: forward, backward and step, for each optimizer in its turn."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from statemachine_trainer.loops.errors import StepOutputError
from statemachine_trainer.loops.optimizers import OptimizerSlot
from statemachine_trainer.loops.outputs import gather
from statemachine_trainer.loops.schedule import step_schedulers
from statemachine_trainer.loops.stepping import NonFinite, SteppingLoop
from statemachine_trainer.machine.declaration import transient

__all__ = ["NonFinite", "OptimizerLoop"]


class OptimizerLoop(SteppingLoop):
    """One split of a batch: forward, zero_grad, backward, clipping, step, schedulers.

    With several optimizers each has its turn, the parameters of the others frozen during its
    forward and backward pass. With accumulation, an optimizer steps at every n-th backward pass; a
    window that is still open when the data of an epoch end is entered by `flush` and stepped with
    its gradients scaled by its true size. (Where `max_steps` counts all optimizers and has been
    reached, it is dropped.) With fp16 a step that the scaler leaves out, because a gradient
    overflowed, is no step: neither counters nor schedulers move.

    Args:
        accumulate: Backward passes per step: a number, or `{from_epoch: number}`.
        clip_norm: Largest 2-norm of the gradients of an optimizer.
        clip_value: Largest absolute value of a gradient.
        nonfinite_loss: What to do with a NaN or infinite loss: "ignore" (no check, so no waiting
            for the device), "raise", or "skip" (no backward pass for it).

    Raises:
        SettingError: A setting out of its range.
    """

    initial = "forward"
    transitions = (
        # event              source            destination
        ["forward_done", "forward", "backward"],
        ["closure", "forward", "optimizer_step"],
        ["next_optimizer", "forward", "forward"],
        ["backward_done", "backward", "optimizer_step"],
        ["next_optimizer", "backward", "forward"],
        ["next_optimizer", "optimizer_step", "forward"],
        ["next_window", "optimizer_step", "optimizer_step"],
    )
    outcomes = ("optimized", "flushed")
    entries = {"flush": "optimizer_step"}

    # -- states ----------------------------------------------------------------------------------

    def forward(self) -> Literal["forward_done", "closure", "next_optimizer", "optimized"]:
        """Call the training step. A step that returns None leaves this optimizer out."""
        # Written out for what is usual, as are the two states below: this is paid in every batch.
        context = self.context
        slots, steps = context.slots, context.steps
        if len(slots) > 1:
            slot = self._take_turn()
        else:
            context.optimizer_idx = 0
            slot = slots[0]
        if slot.takes_closure:
            return "closure"
        if slot.others:
            with slot.others_frozen():
                usable = self._call_step()
        elif context.precision.autocasts or steps.takes_hiddens or self.nonfinite_loss != "ignore":
            usable = self._call_step()
        else:
            output = context.output = steps.training(context.split, context.batch_idx)
            # Only attributes are looked at, which costs no call.
            if output.__class__ is Tensor and output.requires_grad and not output.ndim:
                context.loss = output
                usable = True
            else:
                usable = self._read_loss(output)
        if not usable:
            return self._turn_done()
        if context.outputs is not None:
            gather(context)
        return "forward_done"

    @transient
    def backward(self) -> Literal["backward_done", "next_optimizer", "optimized"]:
        """Clear the gradients at the beginning of a window, and propagate the loss backward."""
        context = self.context
        slot = context.slots[context.optimizer_idx]
        size = self._size or self._size_by_epoch()
        scaler = context.precision.scaler
        loss = context.loss
        assert loss is not None
        if slot.window == 0:
            slot.optimizer.zero_grad()
        if size > 1:
            loss = loss / size
        if scaler is not None:
            loss = scaler.scale(loss)
        if slot.others:
            # Activation checkpointing runs forward passes again in here.
            with slot.others_frozen():
                loss.backward()
        else:
            loss.backward()
        slot.window += 1
        return self._turn_done() if slot.window < size else "backward_done"

    def optimizer_step(self) -> Literal["next_optimizer", "optimized", "next_window", "flushed"]:
        """Clip, step, and step the schedulers that go by steps."""
        context = self.context
        if context.flushing:
            return self._flush()
        slot = context.slots[context.optimizer_idx]
        if slot.takes_closure:
            self._step_with_closure(slot)
        elif (
            self.clip_norm is None
            and self.clip_value is None
            and context.precision.scaler is None
            and not slot.schedulers
        ):
            slot.optimizer.step()
            context.count_step(context.optimizer_idx)
        else:
            self._step(slot)
        return self._turn_done() if len(context.slots) > 1 else "optimized"

    # -- stepping --------------------------------------------------------------------------------

    def _step_with_closure(self, slot: OptimizerSlot) -> None:
        """Let the optimizer evaluate the loss itself, as often as it likes (LBFGS)."""
        context = self.context
        self._check_closure(slot)
        kind = type(slot.optimizer).__name__
        hiddens = context.hiddens
        evaluated = False

        def closure() -> torch.Tensor:
            nonlocal evaluated
            context.keep_hiddens(hiddens)
            if not self._call_step() and not evaluated:
                raise _LeftOut
            loss = context.loss
            if loss is None:
                raise StepOutputError(
                    f"The training step returned None when {kind} evaluated it again. It may leave "
                    "a batch out the first time only."
                )
            evaluated = True
            slot.optimizer.zero_grad()
            loss.backward()
            self._clip(slot)
            return loss

        try:
            with slot.others_frozen():
                slot.optimizer.step(closure)  # type: ignore[arg-type]
        except _LeftOut:
            return
        if context.outputs is not None:
            gather(context)
        context.count_step(context.optimizer_idx)
        if slot.schedulers:
            step_schedulers(slot, "step", slot.steps, context.read_metrics)


class _LeftOut(Exception):
    """The training step left the batch out, within a closure."""
