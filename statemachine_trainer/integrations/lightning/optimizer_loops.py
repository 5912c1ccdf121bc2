"""The optimizer loops for a LightningModule: ours, calling its hooks within the batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch

from statemachine_trainer.integrations.lightning.hooks import Hooks
from statemachine_trainer.integrations.lightning.library import Library
from statemachine_trainer.integrations.lightning.standing import Standing
from statemachine_trainer.integrations.lightning.strategy import StrategyView
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.manual import ManualLoop
from statemachine_trainer.loops.optimizer import OptimizerLoop
from statemachine_trainer.loops.slots import OptimizerSlot, step_schedulers
from statemachine_trainer.machine.declaration import transient
from statemachine_trainer.machine.loop import Loop


@dataclass(frozen=True)
class Parts:
    """What the loops need of a LightningModule's run.

    Attributes:
        hooks: Calls hooks.
        standing: Where the run stands.
        strategy: Backward passes and steps.
    """

    hooks: Hooks
    standing: Standing
    strategy: StrategyView

    @property
    def library(self) -> Library:
        """Lightning."""
        return self.standing.library

    @property
    def module(self) -> Any:
        """The LightningModule."""
        return self.standing.module

    def clip_algorithm(self, name: str | None) -> Any:
        """Return the member of Lightning's enumeration."""
        return None if name is None else self.library.get("utilities:GradClipAlgorithmType")(name)


class LightningOptimizerLoop(OptimizerLoop):
    """`OptimizerLoop` that calls the hooks of a LightningModule around backward pass and step.

    Where the module has an `optimizer_step` of its own (or the optimizer evaluates the loss itself, as LBFGS
    does), forward and backward pass run within it, as they do in Lightning.

    Args:
        parts: What calls the hooks and steps.
        instead_of: The loop whose settings it takes over, and which comes back for another model.
    """

    def __init__(self, parts: Parts, instead_of: OptimizerLoop) -> None:
        super().__init__(
            accumulate=instead_of.accumulate,
            clip_norm=instead_of.clip_norm,
            clip_value=instead_of.clip_value,
            nonfinite_loss=instead_of.nonfinite_loss,
        )
        self.instead_of = instead_of
        self.parts = parts
        self._steps_itself = parts.library.is_overridden("optimizer_step", parts.module)

    def stands_in_for(self) -> Loop | None:
        return self.instead_of

    # -- states ----------------------------------------------------------------------------------

    def forward(self) -> Literal["forward_done", "closure", "next_optimizer", "optimized"]:
        """Call `on_train_batch_start`, which may leave the batch out, and the training step."""
        first = self._turns_done() == 0 and self.context.split_idx == 0
        if first and not self.parts.hooks.batch_started():
            return "optimized"
        if self.parts.standing.skip_backward:
            self._take_turn()
            self._call_step()
            return self._turn_done()
        if self._steps_itself:
            self._take_turn()
            return "closure"
        return super().forward()

    @transient
    def backward(self) -> Literal["backward_done", "next_optimizer", "optimized"]:
        """Clear the gradients at the beginning of a window, and propagate the loss backward."""
        slot = self.context.slots[self.context.optimizer_idx]
        self._backward(slot)
        return self._turn_done() if slot.window < self._window_size(slot) else "backward_done"

    def optimizer_step(self) -> Literal["next_optimizer", "optimized", "next_window", "flushed"]:
        """Step, in the module's own way."""
        context = self.context
        if context.flushing:
            return self._flush()
        slot = context.slots[context.optimizer_idx]
        if slot.takes_closure or self._steps_itself:
            self._step_with_closure(slot)
        else:
            self._step(slot)
        return self._turn_done()

    # -- parts -----------------------------------------------------------------------------------

    def window_size(self) -> int | None:
        return self.parts.standing.accumulate_grad_batches

    def _window_size(self, slot: OptimizerSlot) -> int:
        return (slot.window and slot.size) or self.parts.standing.accumulate_grad_batches

    def _backward(self, slot: OptimizerSlot) -> None:
        context, calls = self.context, self.parts.hooks.calls
        loss = context.loss
        assert loss is not None
        size = self._window_size(slot)
        if slot.window == 0:
            slot.size = size
        if slot.window == 0 or slot.takes_closure:
            optimizer = slot.optimizer
            calls.call("on_before_zero_grad", optimizer)
            calls.call_module(
                "optimizer_zero_grad", context.counts.epoch, context.batch_idx, optimizer
            )
        with slot.others_frozen():
            self.parts.strategy.backward(loss / size)
        slot.window += 1

    def _step(self, slot: OptimizerSlot) -> None:
        self._step_by_module(slot, lambda: self.context.loss)

    def _step_with_closure(self, slot: OptimizerSlot) -> None:
        """Let forward and backward pass run when the optimizer, or the module, asks for them."""
        context = self.context
        if slot.takes_closure and self._window_size(slot) > 1:
            kind = type(slot.optimizer).__name__
            raise SettingError(f"{kind} evaluates the loss itself: set accumulate=1.")

        first = slot.takes_closure

        def closure() -> torch.Tensor | None:
            nonlocal first
            usable = self._evaluated(first=first)
            first = False
            if not usable:
                raise _LeftOut
            self._backward(slot)
            return context.loss

        with suppress(_LeftOut):
            if slot.window + 1 < self._window_size(slot):
                closure()
            else:
                self._step_by_module(slot, closure)

    def _step_by_module(self, slot: OptimizerSlot, closure: Callable[[], Any]) -> None:
        context, strategy = self.context, self.parts.strategy
        before = strategy.overflows
        strategy.clip = self._clip_by_module
        self.parts.hooks.calls.call_module(
            "optimizer_step",
            context.counts.epoch,
            context.batch_idx,
            strategy.wrapped(slot.optimizer),
            closure,
        )
        slot.window = 0
        if strategy.overflows > before:
            return
        context.count_step(context.optimizer_idx)
        if slot.schedulers:
            step_schedulers(slot, "step", slot.steps, context)

    def _clip_by_module(self, optimizer: torch.optim.Optimizer) -> None:
        by_value = self.clip_norm is None and self.clip_value is not None
        algorithm = "value" if by_value else "norm" if self.clip_norm is not None else None
        self.parts.hooks.calls.call_module(
            "configure_gradient_clipping",
            optimizer,
            gradient_clip_val=self.clip_value if by_value else self.clip_norm,
            gradient_clip_algorithm=self.parts.clip_algorithm(algorithm),
        )
        if self.clip_norm is not None and self.clip_value is not None:
            torch.nn.utils.clip_grad_value_(
                [p for group in optimizer.param_groups for p in group["params"]], self.clip_value
            )


class _LeftOut(Exception):
    """The training step returned no loss: the batch is left out, without a step."""


class LightningManualLoop(ManualLoop):
    """`ManualLoop` for a LightningModule that optimizes by hand.

    Args:
        parts: What calls the hooks.
        instead_of: The loop that comes back for another model.
    """

    def __init__(self, parts: Parts, instead_of: Loop) -> None:
        super().__init__(instead_of=instead_of)
        self.parts = parts

    def manual_step(self) -> Literal["optimized"]:
        """Call `on_train_batch_start`, which may leave the batch out, and the training step."""
        if self.context.split_idx == 0 and not self.parts.hooks.batch_started():
            return "optimized"
        return super().manual_step()
