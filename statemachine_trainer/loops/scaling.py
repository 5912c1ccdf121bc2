"""Optimizer steps through the gradient scaler of fp16.

Micikevicius et al., "Mixed Precision Training", ICLR 2018.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch.amp import GradScaler
from torch.optim import Optimizer

from statemachine_trainer.loops.optimizers import OptimizerSlot


def step_scaled(slot: OptimizerSlot, slots: Sequence[OptimizerSlot], scaler: GradScaler) -> bool:
    """Unscale the gradients of an optimizer and step it, unless one of them has overflowed.

    The scaler is brought up to date after each step of each optimizer. Others may hold gradients in
    an open accumulation window then: those are brought to the new scale, by which they will be
    divided (exactly: scales are powers of two).

    Args:
        slot: The optimizer; its window is closed.
        slots: All optimizers.
        scaler: The scaler of the run.

    Returns:
        Whether it stepped.
    """
    stepped: list[object] = []
    hook = slot.optimizer.register_step_post_hook(lambda *_: stepped.append(slot))
    try:
        scaler.step(slot.optimizer)
    finally:
        hook.remove()
    slot.window = 0
    waiting = [other for other in slots if other.window]
    before = scaler.get_scale() if waiting else 1.0
    scaler.update()
    for other in waiting:
        scale_gradients(other, scaler.get_scale() / before)
    return bool(stepped)


def scale_gradients(slot: OptimizerSlot, factor: float) -> None:
    """Multiply the gradients of an optimizer."""
    if factor == 1.0:
        return
    for parameter in slot.parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(factor)


@contextmanager
def stepping_through(scaler: GradScaler, optimizers: Sequence[Optimizer]) -> Iterator[None]:
    """Within the block, let `step()` of the optimizers go through the scaler."""
    own = [vars(optimizer).get("step") for optimizer in optimizers]
    for optimizer in optimizers:
        vars(optimizer)["step"] = _through(scaler, optimizer)
    try:
        yield
    finally:
        for optimizer, step in zip(optimizers, own, strict=True):
            del vars(optimizer)["step"]
            if step is not None:
                vars(optimizer)["step"] = step


def _through(scaler: GradScaler, optimizer: Optimizer) -> Callable[..., Any]:
    plain = optimizer.step

    @wraps(plain)
    def step(*args: Any, **kwargs: Any) -> Any:
        # The scaler itself calls `optimizer.step`.
        vars(optimizer)["step"] = plain
        try:
            result = scaler.step(optimizer, *args, **kwargs)
        finally:
            vars(optimizer)["step"] = step
        scaler.update()
        return result

    return step
