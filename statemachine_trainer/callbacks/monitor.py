"""Logging what a model does not log itself: learning rates and the norm of gradients."""

from __future__ import annotations

from typing import Any

import torch

from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.metrics.log import log
from statemachine_trainer.loops.settings_checks import flags
from statemachine_trainer.machine.keywords import HasSettings


class Monitor(HasSettings):
    """Logs the learning rates, and on request the norm of the gradients, as metrics of training.

    They are in `trainer.metrics`, the journal, trackers and on the page, as all metrics are.

    - "lr": the rate that the last step of the epoch was made with. With several optimizers or groups of parameters
      "lr/0/1", the second group of the first optimizer.
    - "grad_norm": the mean over the steps of the epoch, before clipping; with several optimizers "grad_norm/0".
      Finding it waits for nothing.

    Example:
        >>> Monitor(gradient_norm=True)
        Monitor(learning_rate=True, gradient_norm=True)

    Args:
        learning_rate: Log the rates.
        gradient_norm: Log the norm of all gradients of an optimizer. It needs a loop with a state
            `optimizer_step`.
        on_step: Let readers of single steps have them too, beside what else is logged with `on_step`.

    Raises:
        SettingError: A setting that is no flag, or nothing to log.
    """

    def __init__(
        self,
        *,
        learning_rate: bool = True,
        gradient_norm: bool = False,
        on_step: bool = False,
    ) -> None:
        flags(self, learning_rate=learning_rate, gradient_norm=gradient_norm, on_step=on_step)
        if not (learning_rate or gradient_norm):
            raise SettingError("Monitor(learning_rate=False) has nothing to log. Leave it out.")
        self.learning_rate = learning_rate
        self.gradient_norm = gradient_norm
        self.on_step = on_step
        # Only the methods that have work: one costs time at each of its states.
        if learning_rate:
            self.on_batch_start = self._log_rates
        if gradient_norm:
            self.on_optimizer_step = self._log_norm

    def __repr__(self) -> str:
        return f"Monitor(learning_rate={self.learning_rate}, gradient_norm={self.gradient_norm})"

    def _log_rates(self, trainer: Any) -> None:
        rates = {
            f"lr/{number}/{place}": group["lr"]
            for number, optimizer in enumerate(trainer.context.optimizers)
            for place, group in enumerate(optimizer.param_groups)
        }
        for name, rate in rates.items():
            found = float(rate) if isinstance(rate, torch.Tensor) and rate.is_cpu else rate
            log("lr" if len(rates) == 1 else name, found, reduce="last", on_step=self.on_step)

    def _log_norm(self, trainer: Any) -> None:
        context: Context = trainer.context
        slot = context.slots[context.optimizer_idx]
        gradients = [one.grad for one in slot.parameters if one.grad is not None]
        if not gradients:
            return
        norm = torch.nn.utils.get_total_norm(gradients)
        if context.precision.scaler is not None:
            norm = norm / context.precision.scaler.get_scale()
        if context.flushing and slot.window:
            norm = norm * (slot.size / slot.window)  # as the step of a window that is not full does
        several = len(context.slots) > 1
        name = f"grad_norm/{context.optimizer_idx}" if several else "grad_norm"
        log(name, norm, batch_size=1, on_step=self.on_step)
