"""What loops that step optimizers have in common: windows, clipping, scaling, schedulers, turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from statemachine_trainer.loops.base import TrainingLoop
from statemachine_trainer.loops.errors import NonFiniteLoss, SettingError
from statemachine_trainer.loops.optimizers import OptimizerSlot
from statemachine_trainer.loops.outputs import read_output
from statemachine_trainer.loops.scaling import scale_gradients, step_scaled
from statemachine_trainer.loops.schedule import step_schedulers
from statemachine_trainer.loops.split import detach
from statemachine_trainer.machine.fields import RUN, field

NonFinite = Literal["ignore", "raise", "skip"]


class SteppingLoop(TrainingLoop):
    """Base of the loops that take one split of a batch to steps of the optimizers.

    It has no states, only what these have to do in any order of theirs: call the training step,
    close windows of accumulation, clip, step through the scaler, step the schedulers.

    Args:
        accumulate: Backward passes per step: a number, or `{from_epoch: number}`.
        clip_norm: Largest 2-norm of the gradients of an optimizer.
        clip_value: Largest absolute value of a gradient.
        nonfinite_loss: What to do with a NaN or infinite loss: "ignore" (no check, so no waiting
            for the device), "raise", or "skip" (no backward pass for it).

    Raises:
        SettingError: A setting out of its range.
    """

    # Not reset when the loop is entered: that would be paid in every batch, and most models have one
    # optimizer, whose turn it always is.
    turn: int = field(0, scope=RUN)
    turn_of: tuple[int, int] = field((-1, -1), scope=RUN)
    """The split within which the turns are counted: the number of its batch, and its own."""

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
            if value is not None and not _is_positive(value):
                raise SettingError(
                    f"{type(self).__name__}({name}={value!r}): use a positive number, or None for none."
                )
        if nonfinite_loss not in ("ignore", "raise", "skip"):
            raise SettingError(
                f"{type(self).__name__}(nonfinite_loss={nonfinite_loss!r}): use 'ignore', "
                "'raise' or 'skip'."
            )

    @property
    def accumulate(self) -> int | Mapping[int, int]:
        """Backward passes per step; may be set between two windows."""
        return self._accumulate

    @accumulate.setter
    def accumulate(self, value: int | Mapping[int, int]) -> None:
        self._sizes = _sizes(type(self).__name__, value)
        self._size = None if isinstance(value, Mapping) else value
        self._accumulate = value

    # -- turns -----------------------------------------------------------------------------------

    def _take_turn(self) -> OptimizerSlot:
        """Put the optimizer to work whose turn it is in this split."""
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
        """Find the loss; tell whether to use it, or to leave the batch out."""
        context = self.context
        steps = context.steps
        if context.precision.autocasts:
            with context.precision.context():
                output = steps.training(context.split, context.batch_idx)
        else:
            output = steps.training(context.split, context.batch_idx)
        context.output = output
        return self._read_loss(output)

    def _read_loss(self, output: Any) -> bool:
        """Take loss and hiddens out of what a step returned; tell whether to use the loss."""
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
                f"The loss is {loss.item()} in batch {self.context.batch_idx} of epoch "
                f"{counts.epoch} (step {counts.step}). nonfinite_loss='skip' leaves such "
                "batches out; `torch.autograd.set_detect_anomaly(True)` finds where it arises."
            )
        return False

    def _begin_backward(self, slot: OptimizerSlot) -> torch.Tensor:
        """Clear the gradients if a window begins; return the loss as it is to be propagated."""
        loss = self.context.loss
        assert loss is not None
        size = self._size or self._size_by_epoch()
        if slot.window == 0:
            slot.optimizer.zero_grad()
        if size > 1:
            loss = loss / size
        scaler = self.context.precision.scaler
        return loss if scaler is None else scaler.scale(loss)

    def _is_full(self, slot: OptimizerSlot) -> bool:
        """Tell whether an optimizer has all the gradients that it steps with."""
        return slot.window >= (self._size or self._size_by_epoch())

    # -- stepping --------------------------------------------------------------------------------

    def _step(self, slot: OptimizerSlot) -> None:
        context = self.context
        scaler = context.precision.scaler
        if self.clip_norm is not None or self.clip_value is not None:
            if scaler is not None:
                scaler.unscale_(slot.optimizer)
            self._clip(slot)
        if scaler is None:
            slot.optimizer.step()
        elif not step_scaled(slot, context.slots, scaler):
            return
        context.count_step(context.optimizer_idx)
        if slot.schedulers:
            step_schedulers(slot, "step", slot.steps, context.read_metrics)

    def _check_closure(self, slot: OptimizerSlot) -> None:
        """Refuse what cannot be combined with an optimizer that evaluates the loss itself."""
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
        """Clip the gradients of an optimizer; return their norm before, if it was measured."""
        norm = None
        if self.clip_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(slot.parameters, self.clip_norm)
        if self.clip_value is not None:
            torch.nn.utils.clip_grad_value_(slot.parameters, self.clip_value)
        return norm

    # -- accumulation ----------------------------------------------------------------------------

    def _size_by_epoch(self) -> int:
        epoch = self.context.counts.epoch
        return next((size for start, size in self._sizes if start <= epoch), 1)

    def _flush(self) -> Literal["next_window", "flushed"]:
        """Step the first optimizer whose window is open, its gradients scaled by its true size."""
        context = self.context
        index, slot = next((i, s) for i, s in enumerate(context.slots) if s.window)
        context.optimizer_idx = index
        if context.finished and context.limits.every_optimizer:
            slot.window = 0
        else:
            size = self._size or self._size_by_epoch()
            scale_gradients(slot, size / slot.window)
            slot.window = size
            self._step(slot)
        if context.open_windows:
            return "next_window"
        context.flushing = False
        return "flushed"


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _sizes(loop: str, accumulate: Any) -> list[tuple[int, int]]:
    """Check `accumulate`; return pairs (from this epoch, size of a window), the latest first."""
    table = accumulate if isinstance(accumulate, Mapping) else {0: accumulate}
    for epoch, size in table.items():
        whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (epoch, size))
        if not whole or epoch < 0 or size < 1:
            raise SettingError(
                f"{loop}(accumulate={accumulate!r}): use a whole number from 1, or a dict "
                "from the epoch at which it begins to that number."
            )
    return sorted(table.items(), reverse=True)
