"""Schedules of the learning rate that take the length of the fit, made of torch's own schedulers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    SequentialLR,
)

from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.settings_checks import number, one_of, refuse, whole_number
from statemachine_trainer.machine.keywords import HasSettings


@dataclass(frozen=True)
class warmup(HasSettings):  # noqa: N801 - said as a verb: scheduler=warmup(500)
    """Raises the learning rate for some steps, then lowers it over the rest of the fit.

    Give it to `fit(..., scheduler=warmup(500))`, or call it in `configure_optimizers(self, total_steps)`:
    `warmup(500)(optimizer, total_steps)`, with the interval "step".

    Example:
        >>> warmup(0.1, then="linear")
        warmup(steps=0.1, then='linear', start=0.01, end=0.0)

    Args:
        steps: Optimizer steps of the warm-up, or the fraction of the fit that it takes, if below 1.
        then: How the rate falls: by a cosine, in a line, or not at all ("constant").
        start: Where it begins, as a fraction of the rate of each group of parameters; above 0.
        end: Where it ends, as such a fraction.

    Raises:
        SettingError: A setting out of its range.
    """

    steps: int | float
    then: Literal["cosine", "linear", "constant"] = "cosine"
    start: float = 0.01
    end: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.steps, float) and not 0 < self.steps < 1:
            refuse(self, "steps", self.steps, "use a whole number of steps, or a fraction below 1.")
        if not isinstance(self.steps, float):
            whole_number(self, "steps", self.steps, 1)
        one_of(self, "then", self.then, ("cosine", "linear", "constant"))
        if (
            number(self, "start", self.start) > 1
            or number(self, "end", self.end, positive=False) > 1
        ):
            refuse(self, "start", self.start, "use fractions of the learning rate: at most 1.")

    def __call__(self, optimizer: Optimizer, total_steps: int) -> LRScheduler:
        """Make the scheduler of an optimizer; it goes by steps.

        Raises:
            SettingError: The fit is no longer than the warm-up, or no cosine of torch fits.
        """
        first = self.steps if not isinstance(self.steps, float) else round(self.steps * total_steps)
        first = max(1, first)
        left = total_steps - first
        if left < 1:
            raise SettingError(
                f"warmup(steps={self.steps!r}) leaves nothing of a fit of {total_steps} steps. Warm up for fewer."
            )
        rising = LinearLR(optimizer, start_factor=self.start, total_iters=first)
        return SequentialLR(optimizer, [rising, self._falling(optimizer, left)], milestones=[first])

    def _falling(self, optimizer: Optimizer, left: int) -> LRScheduler:
        if self.then == "constant":
            return ConstantLR(optimizer, factor=1.0, total_iters=1)
        if self.then == "linear":
            return LinearLR(optimizer, start_factor=1.0, end_factor=self.end, total_iters=left)
        rates = {float(group["initial_lr"]) for group in optimizer.param_groups}
        if self.end and len(rates) > 1:
            raise SettingError(
                f"warmup(end={self.end!r}): a cosine of torch ends at one rate for all groups of parameters, and these "
                "have several. Use end=0.0, or then='linear'."
            )
        return CosineAnnealingLR(optimizer, T_max=left, eta_min=self.end * rates.pop())


def learning_rates(optimizers: Sequence[Optimizer]) -> dict[str, float | torch.Tensor]:
    """Return the present learning rates by name.

    One is "lr"; of several optimizers or groups of parameters "lr/0/1" is that of the second group of the first one.
    A rate on an accelerator stays there, as a tensor.
    """
    rates = {
        f"lr/{number}/{place}": group["lr"]
        for number, optimizer in enumerate(optimizers)
        for place, group in enumerate(optimizer.param_groups)
        if "lr" in group
    }
    return {
        "lr" if len(rates) == 1 else name: (
            float(rate) if not isinstance(rate, torch.Tensor) or rate.is_cpu else rate
        )
        for name, rate in rates.items()
    }
