"""The base of all loops that step optimizers."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch

from statemachine_trainer.loops.bare_calls import run_backward
from statemachine_trainer.loops.base import TrainingLoop
from statemachine_trainer.loops.changeable import Changeable
from statemachine_trainer.loops.loop_errors import NonFiniteLoss, SettingError
from statemachine_trainer.loops.outputs import read_output
from statemachine_trainer.loops.settings_checks import number, one_of
from statemachine_trainer.loops.slots import (
    OptimizerSlot,
    scale_gradients,
)
from statemachine_trainer.loops.verbs import (
    call_step,
    loss_to_propagate,
    step_optimizer,
)
from statemachine_trainer.machine.fields import RUN, field
from statemachine_trainer.parallel.containers import detach
from statemachine_trainer.parallel.cut_up import clip_over_meshes

_log = logging.getLogger("statemachine_trainer.recovery")

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
            for the device), "raise", or "skip" (no backward pass for it; at no rank, if there are
            several).

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
    def changeable(self) -> Mapping[str, Changeable]:
        return {
            "clip_norm": Changeable(above=True, none=True, unit="norm of all gradients"),
            "clip_value": Changeable(above=True, none=True, unit="size of a gradient's entry"),
        }

    @property
    def steps_optimizers(self) -> bool:
        return True

    def steps_of_batches(self, epoch: int, batches: int) -> int:
        size = next((size for start, size in self._sizes if start <= epoch), 1)
        return -(-batches // size)  # what is left at the end of an epoch makes a step too

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
        if loss is None and self.nonfinite_loss != "skip":  # with which all ranks agree on it
            context.loss = loss = self._leave_out()
        usable = loss is not None
        if self.nonfinite_loss != "ignore":
            usable = self._is_usable(loss)
            if loss is not None and not usable:
                return False
        if hiddens is not None:
            context.keep_hiddens(detach(hiddens))
        return usable

    def _leave_out(self) -> torch.Tensor | None:
        """Leave a batch out that has no loss here; return the loss to go on with if other ranks have one."""
        context = self.context
        if context.slots[context.optimizer_idx].takes_closure:
            return None  # all agree on it at the first evaluation
        return context.steps.sync.leave_out()

    def _is_usable(self, loss: torch.Tensor | None) -> bool:
        """Return whether to go backward from a loss. With "skip" the ranks agree on it: all do, or none.

        Raises:
            NonFiniteLoss: It is not finite, and that is to be an error.
        """
        finite = loss is not None and self._is_finite(loss)
        if self.nonfinite_loss != "skip":
            return finite
        return self._all_can(finite, "finite loss")

    def _evaluated(self, *, first: bool) -> bool:
        """Call the training step for an optimizer that evaluates the loss itself; return False to leave the batch out.

        Ranks that leave the batch out do so at the first evaluation, and all together.
        """
        usable = self._call_step()
        return self._all_can(usable) if first and self.nonfinite_loss != "skip" else usable

    def _all_can(self, can: bool, what: str = "loss") -> bool:
        """Return whether all ranks can use the batch. A collective; a rank that could is told which one cannot."""
        rank = self.context.steps.sync.objector(can)
        if rank is not None and can:  # the other ranks know it of themselves
            counts = self.context.counts
            _log.warning(
                "left out batch %d of epoch %d, as all ranks do: rank %d has no %s for it.",
                self.context.batch_idx + 1,
                counts.epoch + 1,
                rank,
                what,
            )
        return rank is None

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
            run_backward(loss)

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
            if self.context.steps.sync.several_meshes:
                norm = clip_over_meshes(slot.parameters, self.clip_norm)
            else:
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
