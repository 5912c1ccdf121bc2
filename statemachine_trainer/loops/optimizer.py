"""The optimizer loop: forward, backward and step, for one optimizer after the other.

Its base, `SteppingLoop`, is the base of all loops that step optimizers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from statemachine_trainer.loops.base import TrainingLoop
from statemachine_trainer.loops.loop_errors import NonFiniteLoss, SettingError, StepOutputError
from statemachine_trainer.loops.outputs import gather, read_output
from statemachine_trainer.loops.settings_checks import number, one_of
from statemachine_trainer.loops.slots import (
    OptimizerSlot,
    scale_gradients,
)
from statemachine_trainer.loops.verbs import (
    call_step,
    count_step,
    loss_to_propagate,
    step_optimizer,
)
from statemachine_trainer.machine.declaration import transient
from statemachine_trainer.machine.fields import RUN, field
from statemachine_trainer.parallel.containers import detach

NonFinite = Literal["ignore", "raise", "skip"]


class SteppingLoop(TrainingLoop):
    """Base of the loops that step optimizers on one split of a batch.

    It has no states, only the methods that they need in any order: call the training step, close
    accumulation windows, clip, step through the scaler, step the schedulers.

    Args:
        accumulate: Backward passes per step: a number, or `{from_epoch: number}`.
        clip_norm: Largest 2-norm of the gradients of an optimizer.
        clip_value: Largest absolute value of a gradient.
        nonfinite_loss: What to do with a NaN or infinite loss: "ignore" (no check, so no waiting
            for the device), "raise", or "skip" (no backward pass for it).

    Raises:
        SettingError: A setting out of its range.
    """

    # Not reset when the loop is entered: that would cost time in every batch, and most models have
    # one optimizer, whose turn it always is.
    turn: int = field(0, scope=RUN)
    turn_of: tuple[int, int] = field((-1, -1), scope=RUN)
    """The split to which `turn` belongs: the number of its batch, and its own."""

    def __init__(
        self,
        *,
        accumulate: int | Mapping[int, int] = 1,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        nonfinite_loss: NonFinite = "ignore",
    ) -> None:
        super().__init__()
        self.accumulate = accumulate
        self.clip_norm = clip_norm
        self.clip_value = clip_value
        self.nonfinite_loss = nonfinite_loss
        for name, value in (("clip_norm", clip_norm), ("clip_value", clip_value)):
            if value is not None and value != math.inf:  # which measures, and clips nothing
                number(self, name, value, hint=" None is for none.")
        one_of(self, "nonfinite_loss", nonfinite_loss, ("ignore", "raise", "skip"))

    @property
    def accumulate(self) -> int | Mapping[int, int]:
        """Backward passes per step. A value set while a window is open holds for the next one."""
        return self._accumulate

    @accumulate.setter
    def accumulate(self, value: int | Mapping[int, int]) -> None:
        self._sizes = _sizes(type(self).__name__, value)
        self._size = None if isinstance(value, Mapping) else value
        self._accumulate = value

    @property
    def steps_optimizers(self) -> bool:
        return True

    def steps_of_batches(self, epoch: int, batches: int) -> int:
        size = next((size for start, size in self._sizes if start <= epoch), 1)
        return -(-batches // size)  # what is left at the end of an epoch makes a step too

    def why_alone(self) -> str | None:
        if self.nonfinite_loss != "skip":
            return None
        return (
            "has nonfinite_loss='skip', by which a rank would leave out a batch alone, and the others "
            "wait for its gradients for ever. Use 'raise' or 'ignore'."
        )

    # -- turns -----------------------------------------------------------------------------------

    def _take_turn(self) -> OptimizerSlot:
        """Select the optimizer whose turn it is in this split."""
        context = self.context
        context.optimizer_idx = context.turns.at(context.counts.batch)[self._turns_done()]
        return context.slots[context.optimizer_idx]

    def _turns_done(self) -> int:
        """Return how many optimizers have had their turn in this split."""
        split = self.context.counts.batch, self.context.split_idx
        if self.turn_of != split:
            self.turn, self.turn_of = 0, split
        return self.turn

    def _turn_done(self) -> Literal["next_optimizer", "optimized"]:
        """Move on to the next optimizer of this split, if there is one and no limit was reached."""
        context = self.context
        self.turn += 1
        left_out = context.finished and context.limits.every_optimizer
        if not left_out and self.turn < len(context.turns.at(context.counts.batch)):
            return "next_optimizer"
        self.turn = 0
        return "optimized"

    # -- the training step -----------------------------------------------------------------------

    def _call_step(self) -> bool:
        """Call the training step; return False to leave the batch out."""
        return self._read_loss(call_step(self.context, self.context.split))

    def _read_loss(self, output: Any) -> bool:
        """Read loss and hiddens from the output of a step; return False to leave the batch out."""
        context = self.context
        loss, hiddens = read_output(output, context.steps.takes_hiddens, context.model)
        context.loss = loss
        if loss is not None and self.nonfinite_loss != "ignore" and not self._is_finite(loss):
            return False
        if hiddens is not None:
            context.keep_hiddens(detach(hiddens))
        return loss is not None

    def _is_finite(self, loss: torch.Tensor) -> bool:
        if bool(torch.isfinite(loss)):
            return True
        if self.nonfinite_loss == "raise":
            counts = self.context.counts
            raise NonFiniteLoss(
                f"The loss is {loss.item()} in batch {self.context.batch_idx + 1} of epoch {counts.epoch + 1} "
                f"(batch_idx {self.context.batch_idx}, step {counts.step}). nonfinite_loss='skip' leaves such "
                "batches out; `torch.autograd.set_detect_anomaly(True)` finds where it arises."
            )
        return False

    def _begin_backward(self, slot: OptimizerSlot) -> torch.Tensor:
        """Clear the gradients if a window begins; return the loss to propagate."""
        loss = self.context.loss
        assert loss is not None
        return loss_to_propagate(self.context, slot, loss, self._window_size(slot))

    def _propagate(self, slot: OptimizerSlot) -> None:
        """Run the backward pass, to the parameters of one optimizer."""
        loss = self._begin_backward(slot)
        # Activation checkpointing repeats forward passes in here.
        with slot.others_frozen():
            loss.backward()

    def _is_full(self, slot: OptimizerSlot) -> bool:
        """Return whether the accumulation window of an optimizer is full."""
        return slot.window >= self._window_size(slot)

    # -- stepping --------------------------------------------------------------------------------

    def _step(self, slot: OptimizerSlot) -> None:
        """Clip the gradients of an optimizer, and step it."""
        context = self.context
        if self.clip_norm is not None or self.clip_value is not None:
            if context.precision.scaler is not None:
                context.precision.scaler.unscale_(slot.optimizer)
            self._clip(slot)
        step_optimizer(context, context.optimizer_idx)

    def _check_closure(self, slot: OptimizerSlot) -> None:
        """Refuse settings that do not work with an optimizer that evaluates the loss itself."""
        kind = type(slot.optimizer).__name__
        if self.context.precision.scaler is not None:
            raise SettingError(f"{kind} evaluates the loss itself: use bf16 or 32, not fp16.")
        if (self._size or self._size_by_epoch()) > 1:
            raise SettingError(f"{kind} evaluates the loss itself: set accumulate=1.")

    def _refuse_closure(self, slot: OptimizerSlot) -> None:
        """Refuse an optimizer that evaluates the loss itself."""
        if slot.takes_closure:
            raise SettingError(
                f"{type(slot.optimizer).__name__} evaluates the loss itself, several times a step, "
                f"and {type(self).__name__} decides itself when to. Use another optimizer, or "
                "ClosureLoop in its place."
            )

    def _clip(self, slot: OptimizerSlot) -> torch.Tensor | None:
        """Clip the gradients of an optimizer; return their norm before clipping, if it was computed."""
        norm = None
        if self.clip_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(slot.parameters, self.clip_norm)
        if self.clip_value is not None:
            torch.nn.utils.clip_grad_value_(slot.parameters, self.clip_value)
        return norm

    # -- accumulation ----------------------------------------------------------------------------

    def _window_size(self, slot: OptimizerSlot) -> int:
        """Return the size of the open window, or of the next one if none is open.

        A window keeps its size: if `accumulate` changes while it is open, its gradients have
        already been divided by the old number.
        """
        return (slot.window and slot.size) or self._size or self._size_by_epoch()

    def _size_by_epoch(self) -> int:
        epoch = self.context.counts.epoch
        return next((size for start, size in self._sizes if start <= epoch), 1)

    def _flush(self) -> Literal["next_window", "flushed"]:
        """Step the first optimizer with an open window, with gradients scaled to its true size."""
        context = self.context
        index, slot = next((i, s) for i, s in enumerate(context.slots) if s.window)
        context.optimizer_idx = index
        if context.finished and context.limits.every_optimizer:
            slot.window = 0
        else:
            size = self._window_size(slot)
            scale_gradients(slot, size / slot.window)
            slot.window = size
            self._step(slot)
        if context.open_windows:
            return "next_window"
        context.flushing = False
        return "flushed"


class OptimizerLoop(SteppingLoop):
    """One split of a batch: forward, zero_grad, backward, clipping, step, schedulers.

    Several optimizers take turns. The parameters of the others are frozen during the forward and
    backward pass of one. With accumulation, an optimizer steps at every n-th backward pass. If a
    window is still open when the data of an epoch ends, the loop is entered once more by `flush`
    and steps with gradients scaled to the true size of the window. (If `max_steps` counts all
    optimizers and was reached, the window is dropped.) With fp16, a step that the scaler skips
    because a gradient overflowed does not count: counters and schedulers stay.

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
        # The usual case is inlined here and in the two states below, because it runs in every batch.
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
            # Only attributes are read, without calls.
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
        """Clear the gradients at the beginning of a window, and run the backward pass."""
        context = self.context
        slot = context.slots[context.optimizer_idx]
        if (
            self._size == 1
            and not slot.window
            and context.precision.scaler is None
            and not slot.others
        ):
            slot.size = 1
            slot.optimizer.zero_grad()
            context.loss.backward()  # type: ignore[union-attr]
            slot.window = 1
            return "backward_done"
        self._propagate(slot)
        slot.window += 1
        return "backward_done" if self._is_full(slot) else self._turn_done()

    def optimizer_step(self) -> Literal["next_optimizer", "optimized", "next_window", "flushed"]:
        """Clip, step, and step the schedulers that count steps."""
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
            slot.optimizer.step()  # the usual case of `step_optimizer`
            context.count_step(context.optimizer_idx)
        else:
            self._step(slot)
        return self._turn_done() if len(context.slots) > 1 else "optimized"

    # -- stepping --------------------------------------------------------------------------------

    def window_size(self) -> int | None:
        # A subclass may look at gradients after each backward pass.
        return self._size or self._size_by_epoch() if type(self) is OptimizerLoop else None

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
        count_step(context, context.optimizer_idx)


class _LeftOut(Exception):
    """The training step left the batch out, within a closure."""


def _sizes(loop: str, accumulate: Any) -> list[tuple[int, int]]:
    """Check `accumulate`; return pairs (first epoch, size of a window), the latest first."""
    table = accumulate if isinstance(accumulate, Mapping) else {0: accumulate}
    for epoch, size in table.items():
        whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (epoch, size))
        if not whole or epoch < 0 or size < 1:
            raise SettingError(
                f"{loop}(accumulate={accumulate!r}): use a whole number from 1, or a dict "
                "from the epoch at which it begins to that number."
            )
    return sorted(table.items(), reverse=True)
