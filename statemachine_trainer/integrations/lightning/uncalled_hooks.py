"""Tells of hooks that no loop of the tree would call."""

from __future__ import annotations

import warnings
from typing import Final

from statemachine_trainer.integrations.lightning.calls import HookCalls
from statemachine_trainer.integrations.lightning.library import HooksNotCalledWarning, NotSupported
from statemachine_trainer.integrations.lightning.optimizer_loops import LightningOptimizerLoop
from statemachine_trainer.loops.base import in_training
from statemachine_trainer.loops.manual import ManualLoop
from statemachine_trainer.loops.optimizer import OptimizerLoop
from statemachine_trainer.loops.stepping import SteppingLoop
from statemachine_trainer.machine.errors import level_of_caller
from statemachine_trainer.machine.loop import SEPARATOR, Loop

_BATCH: Final = ("on_train_batch_start",)
_HEARING: Final = (
    *_BATCH, "on_before_zero_grad", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step",
)  # fmt: skip
_WORKING: Final = (
    "backward", "optimizer_zero_grad", "optimizer_step", "configure_gradient_clipping",
)  # fmt: skip


def tell_of_hooks_not_called(root: Loop, calls: HookCalls) -> None:
    """Look for loops that do without the hooks around backward pass and step.

    `LightningOptimizerLoop` takes the place of a plain `OptimizerLoop` only. Any other loop, such as
    a `SAMLoop`, goes by its own states.

    Args:
        root: The loop of the fit.
        calls: Those of module and callbacks.

    Raises:
        NotSupported: The module does work in such a hook that the loop does in its own way.
    """
    for path, loop in root.walk("fit"):
        if _is_another(path, loop):
            _refuse_work(path, loop, calls)
            _warn(path, loop, calls)


def _is_another(path: str, loop: Loop) -> bool:
    """Whether a loop stands where the hooks would have been called, and does not call them."""
    if type(loop) is OptimizerLoop or isinstance(loop, LightningOptimizerLoop):
        return False
    if in_training(loop).stands_in_for() is not None:
        return False  # it makes room for another one before the fit begins
    return isinstance(loop, SteppingLoop) or path.rpartition(SEPARATOR)[2] == "optimizer"


def _refuse_work(path: str, loop: Loop, calls: HookCalls) -> None:
    own = [name for name in _WORKING if calls.library.is_overridden(name, calls.module)]
    if own and not isinstance(loop, ManualLoop):
        raise NotSupported(
            f"{type(calls.module).__name__} has its own {' and '.join(own)}, which the "
            f"{type(loop).__name__} at {path!r} never calls: it would train in another way than the "
            "module says. Put an OptimizerLoop there, or take the method out and do its work in the "
            "loop or in a receiver of its signals."
        )


def _warn(path: str, loop: Loop, calls: HookCalls) -> None:
    names = _BATCH if isinstance(loop, ManualLoop) else _HEARING
    missed = [
        f"{type(owner).__name__}.{name}"
        for owner in (calls.module, *calls.callbacks)
        for name in names
        if calls.library.is_overridden(name, owner)
    ]
    if missed:
        warnings.warn(
            f"The {type(loop).__name__} at {path!r} calls no hooks of Lightning, so these are not "
            f"called: {', '.join(missed)}. Subscribe to the states of the loop in their place "
            "(`trainer.describe()`, `trainer.graph()`), or put an OptimizerLoop there.",
            HooksNotCalledWarning,
            stacklevel=level_of_caller(),
        )
