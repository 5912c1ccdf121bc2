"""Steps with a smaller learning rate than the optimizer has, whatever schedulers make of that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)


class SlowerSteps:
    """From now to `end`, optimizers step with a fraction of their learning rates.

    The rate is another one within the step alone. So schedulers, which multiply what they find, go on
    from the rate itself, to the bit, and so do checkpoints: nothing of this is in the optimizer's state.

    Args:
        scale: The fraction.
        holds: Called before each step of any optimizer of this process; returns whether it is such a step.
    """

    def __init__(self, scale: float, holds: Callable[[Optimizer], bool]) -> None:
        self._scale = scale
        self._holds = holds
        self._rates: dict[int, tuple[Optimizer, list[Any]]] = {}
        self._handles = [
            register_optimizer_step_pre_hook(self._lower),
            register_optimizer_step_post_hook(self._put_back),
        ]

    def end(self) -> None:
        """End; the rates of a step that has raised are put back."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for optimizer, _ in [*self._rates.values()]:
            self._put_back(optimizer)

    def _lower(self, optimizer: Optimizer, *arguments: object) -> None:
        self._put_back(optimizer)  # its last step has raised
        if self._holds(optimizer):
            rates = [group["lr"] for group in optimizer.param_groups]
            self._rates[id(optimizer)] = optimizer, rates
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * self._scale

    def _put_back(self, optimizer: Optimizer, *arguments: object) -> None:
        _, rates = self._rates.pop(id(optimizer), (optimizer, []))
        for group, rate in zip(optimizer.param_groups, rates, strict=False):
            group["lr"] = rate
