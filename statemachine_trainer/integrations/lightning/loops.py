"""The optimizer loops for a LightningModule: ours, calling its hooks within the batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from statemachine_trainer.integrations.lightning.library import (
    HooksNotCalledWarning,
    NotSupported,
)
from statemachine_trainer.loops.base import in_training
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.manual import ManualLoop
from statemachine_trainer.loops.optimizer import OptimizerLoop, SteppingLoop
from statemachine_trainer.loops.optimizers import OptimizerSlot, step_schedulers
from statemachine_trainer.machine.declaration import transient
from statemachine_trainer.machine.loop import SEPARATOR, Loop

if TYPE_CHECKING:
    from statemachine_trainer.integrations.lightning.hooks import Hooks
    from statemachine_trainer.integrations.lightning.view import TrainerView


class LightningOptimizerLoop(OptimizerLoop):
    """`OptimizerLoop` that calls the hooks of a LightningModule around backward pass and step.

    Where the module has an `optimizer_step` of its own (or the optimizer evaluates the loss itself, as LBFGS
    does), forward and backward pass run within it, as they do in Lightning.

    Args:
        view: What the module takes for Lightning's trainer.
        instead_of: The loop whose settings it takes over, and which comes back for another model.
    """

    def __init__(self, view: TrainerView, instead_of: OptimizerLoop) -> None:
        super().__init__(
            accumulate=instead_of.accumulate,
            clip_norm=instead_of.clip_norm,
            clip_value=instead_of.clip_value,
            nonfinite_loss=instead_of.nonfinite_loss,
        )
        self.instead_of = instead_of
        self.view = view
        self._steps_itself = view.library.is_overridden("optimizer_step", view.module)

    def stands_in_for(self) -> Loop | None:
        return self.instead_of

    # -- states ----------------------------------------------------------------------------------

    def forward(self) -> Literal["forward_done", "closure", "next_optimizer", "optimized"]:
        """Call `on_train_batch_start`, which may leave the batch out, and the training step."""
        first = self._turns_done() == 0 and self.context.split_idx == 0
        if first and not self.view.hooks.batch_started():
            return "optimized"
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

    def _window_size(self, slot: OptimizerSlot) -> int:
        return (slot.window and slot.size) or self.view.accumulate_grad_batches

    def _backward(self, slot: OptimizerSlot) -> None:
        context, hooks = self.context, self.view.hooks
        loss = context.loss
        assert loss is not None
        size = self._window_size(slot)
        if slot.window == 0:
            slot.size = size
        if slot.window == 0 or slot.takes_closure:
            optimizer = slot.optimizer
            hooks.call("on_before_zero_grad", optimizer)
            hooks.call_module(
                "optimizer_zero_grad", context.counts.epoch, context.batch_idx, optimizer
            )
        with slot.others_frozen():
            self.view.strategy.backward(loss / size)
        slot.window += 1

    def _step(self, slot: OptimizerSlot) -> None:
        self._step_by_module(slot, lambda: self.context.loss)

    def _step_with_closure(self, slot: OptimizerSlot) -> None:
        """Let forward and backward pass run when the optimizer, or the module, asks for them."""
        context = self.context
        if slot.takes_closure and self._window_size(slot) > 1:
            kind = type(slot.optimizer).__name__
            raise SettingError(f"{kind} evaluates the loss itself: set accumulate=1.")

        def closure() -> torch.Tensor | None:
            if not self._call_step():
                raise _LeftOut
            self._backward(slot)
            return context.loss

        with suppress(_LeftOut):
            if slot.window + 1 < self._window_size(slot):
                closure()
            else:
                self._step_by_module(slot, closure)

    def _step_by_module(self, slot: OptimizerSlot, closure: Callable[[], Any]) -> None:
        context, strategy = self.context, self.view.strategy
        before = strategy.overflows
        strategy.clip = self._clip_by_module
        self.view.hooks.call_module(
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
        self.view.hooks.call_module(
            "configure_gradient_clipping",
            optimizer,
            gradient_clip_val=self.clip_value if by_value else self.clip_norm,
            gradient_clip_algorithm=self.view.clip_algorithm(algorithm),
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
        view: What the module takes for Lightning's trainer.
        instead_of: The loop that comes back for another model.
    """

    def __init__(self, view: TrainerView, instead_of: Loop) -> None:
        super().__init__(instead_of=instead_of)
        self.view = view

    def manual_step(self) -> Literal["optimized"]:
        """Call `on_train_batch_start`, which may leave the batch out, and the training step."""
        if self.context.split_idx == 0 and not self.view.hooks.batch_started():
            return "optimized"
        return super().manual_step()


# -- Hooks that another loop leaves uncalled ------------------------------------------------------


_BATCH: Final = ("on_train_batch_start",)
_HEARING: Final = (
    *_BATCH, "on_before_zero_grad", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step",
)  # fmt: skip
_WORKING: Final = (
    "backward", "optimizer_zero_grad", "optimizer_step", "configure_gradient_clipping",
)  # fmt: skip


def tell_of_hooks_not_called(root: Loop, hooks: Hooks) -> None:
    """Look for loops that do without the hooks around backward pass and step.

    `LightningOptimizerLoop` takes the place of a plain `OptimizerLoop` only. Any other loop, such as
    a `SAMLoop`, goes by its own states.

    Args:
        root: The loop of the fit.
        hooks: Those of the module.

    Raises:
        NotSupported: The module does work in such a hook that the loop does in its own way.
    """
    for path, loop in root.walk("fit"):
        if _is_another(path, loop):
            _refuse_work(path, loop, hooks)
            _warn(path, loop, hooks)


def _is_another(path: str, loop: Loop) -> bool:
    """Whether a loop stands where the hooks would have been called, and does not call them."""
    if type(loop) is OptimizerLoop or isinstance(loop, LightningOptimizerLoop):
        return False
    if in_training(loop).stands_in_for() is not None:
        return False  # it makes room for another one before the fit begins
    return isinstance(loop, SteppingLoop) or path.rpartition(SEPARATOR)[2] == "optimizer"


def _refuse_work(path: str, loop: Loop, hooks: Hooks) -> None:
    own = [name for name in _WORKING if hooks.library.is_overridden(name, hooks.module)]
    if own and not isinstance(loop, ManualLoop):
        raise NotSupported(
            f"{type(hooks.module).__name__} has its own {' and '.join(own)}, which the "
            f"{type(loop).__name__} at {path!r} never calls: it would train in another way than the "
            "module says. Put an OptimizerLoop there, or take the method out and do its work in the "
            "loop or in a receiver of its signals."
        )


def _warn(path: str, loop: Loop, hooks: Hooks) -> None:
    names = _BATCH if isinstance(loop, ManualLoop) else _HEARING
    missed = [
        f"{type(owner).__name__}.{name}"
        for owner in (hooks.module, *hooks.callbacks)
        for name in names
        if hooks.library.is_overridden(name, owner)
    ]
    if missed:
        warnings.warn(
            f"The {type(loop).__name__} at {path!r} calls no hooks of Lightning, so these are not "
            f"called: {', '.join(missed)}. Subscribe to the states of the loop in their place "
            "(`trainer.describe()`, `trainer.graph()`), or put an OptimizerLoop there.",
            HooksNotCalledWarning,
            stacklevel=2,
        )


# -- What `configure_optimizers` returns ----------------------------------------------------------


class HookedScheduler:
    """A scheduler that is stepped by the module's own `lr_scheduler_step`.

    Args:
        scheduler: The scheduler, of any kind.
        hooks: Those of the module.
    """

    def __init__(self, scheduler: Any, hooks: Hooks) -> None:
        self.scheduler = scheduler
        self._hooks = hooks

    @property
    def optimizer(self) -> Any:
        """The optimizer whose learning rates it sets."""
        return self.scheduler.optimizer

    def step(self, metric: float | None = None) -> None:
        """Let the module step it."""
        self._hooks.call_module("lr_scheduler_step", self.scheduler, metric)

    def state_dict(self) -> Any:
        """Return the state of the scheduler."""
        return self.scheduler.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Load a state of the scheduler."""
        self.scheduler.load_state_dict(state)


def with_scheduler_hook(returned: Any, hooks: Hooks, *, automatic: bool) -> Any:
    """Let the schedulers be stepped by the module if it has an `lr_scheduler_step`.

    Args:
        returned: What `configure_optimizers` returned.
        hooks: Those of the module.
        automatic: Whether optimization is automatic; by hand nobody but the module steps them.
    """
    own = automatic and hooks.library.is_overridden("lr_scheduler_step", hooks.module)

    def settle(config: Any) -> Any:
        if not isinstance(config, Mapping):
            config = {"scheduler": config}
        if "scheduler" not in config:
            return config
        scheduler = config["scheduler"]
        plateau = config.get("reduce_on_plateau", isinstance(scheduler, ReduceLROnPlateau))
        if not automatic:
            config = {k: v for k, v in config.items() if k not in ("monitor", "strict")}
            return {
                **config,
                "reduce_on_plateau": False,
                "scheduler": HookedScheduler(scheduler, hooks),
            }
        if not own:
            return {**config, "reduce_on_plateau": plateau}
        return {
            **config,
            "reduce_on_plateau": plateau,
            "scheduler": HookedScheduler(scheduler, hooks),
        }

    if isinstance(returned, Mapping):
        return _settled(returned, settle)
    if _is_pair(returned):
        optimizers, schedulers = returned
        many = schedulers if isinstance(schedulers, list | tuple) else [schedulers]
        return list(optimizers), [settle(one) for one in many]
    if isinstance(returned, list | tuple):
        return [_settled(one, settle) if isinstance(one, Mapping) else one for one in returned]
    return returned


def _settled(config: Mapping[str, Any], settle: Any) -> dict[str, Any]:
    if config.get("lr_scheduler") is None:
        return dict(config)
    return {**config, "lr_scheduler": settle(config["lr_scheduler"])}


def _is_pair(returned: Any) -> bool:
    return (
        isinstance(returned, list | tuple)
        and len(returned) == 2
        and isinstance(returned[0], list)
        and not isinstance(returned[1], Mapping)
    )
