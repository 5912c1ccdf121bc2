"""Logging what a model does not log itself: learning rates, the norm of gradients, throughput and memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.metrics.log import log
from statemachine_trainer.loops.schedules import learning_rates
from statemachine_trainer.loops.settings_checks import flags, function, is_whole, number, refuse
from statemachine_trainer.machine.keywords import HasSettings
from statemachine_trainer.machine.signals import Moment
from statemachine_trainer.parallel.cut_up import total_norm

READINGS: Final = frozenset(
    (
        "samples_per_second",
        "batches_per_second",
        "tokens_per_second",
        "mfu",
        "memory_gib",
        "seconds_apart",
    )
)
"""Names of what tells of the machine, not of the training: two equal runs differ in these."""

_GIB: Final = 2**30


class Monitor(HasSettings):
    """Logs the learning rates, and on request other readings, as metrics of training.

    They are in `trainer.metrics`, the journal, trackers and on the page, as all metrics are. Trackers see those of an
    epoch if they come after it in `callbacks`.

    - "lr": the rate that the last step of the epoch was made with. With several optimizers or groups of parameters
      "lr/0/1", the second group of the first optimizer.
    - "grad_norm": the mean over the steps of the epoch, before clipping; with several optimizers "grad_norm/0".
      Finding it waits for nothing.
    - "samples_per_second", "batches_per_second", "tokens_per_second": of the epoch so far, without the time that
      validation took; of this process, where there are several. The first epoch has the time of warming up in it.
    - "memory_gib": the most that tensors have taken on the device of the model so far; on the CPU the most that the
      process has.
    - "mfu": which part of the operations that the device could make were those of the model.

    Example:
        >>> Monitor(gradient_norm=True)
        Monitor(learning_rate=True, gradient_norm=True)

    Args:
        learning_rate: Log the rates.
        gradient_norm: Log the norm of all gradients of an optimizer. It needs a loop with a state
            `optimizer_step`.
        throughput: Log samples and batches a second.
        tokens: A function of a batch that returns how many tokens it has; they are logged per second.
        memory: Log the memory.
        flops: Floating point operations of training on one sample, forward and backward; `summary(...).flops` finds
            those of a forward pass. For "mfu".
        peak_flops: Such operations that the device makes in a second at best, such as 989e12 for an H100 in bfloat16.
        on_step: Let readers of single steps have rates and norms too, beside what else is logged with `on_step`.

    Raises:
        SettingError: A setting out of its range, one of `flops` and `peak_flops` without the other, or nothing to log.
    """

    def __init__(
        self,
        *,
        learning_rate: bool = True,
        gradient_norm: bool = False,
        throughput: bool = False,
        tokens: Callable[[Any], int] | None = None,
        memory: bool = False,
        flops: float | None = None,
        peak_flops: float | None = None,
        on_step: bool = False,
    ) -> None:
        flags(self, learning_rate=learning_rate, gradient_norm=gradient_norm, on_step=on_step)
        flags(self, throughput=throughput, memory=memory)
        function(self, "tokens", tokens, "of a batch that returns how many tokens it has.")
        for name, value in (("flops", flops), ("peak_flops", peak_flops)):
            if value is not None:
                number(self, name, value)
        if (flops is None) != (peak_flops is None):
            raise SettingError(
                f"Monitor(flops={flops!r}, peak_flops={peak_flops!r}): the part of the operations that are used needs "
                "both: those of a sample, and those that the device makes in a second at best."
            )
        timed = throughput or tokens is not None or flops is not None
        if not (learning_rate or gradient_norm or timed or memory):
            raise SettingError("Monitor(learning_rate=False) has nothing to log. Leave it out.")
        self.learning_rate = learning_rate
        self.gradient_norm = self.reads_gradients = gradient_norm
        self.throughput = throughput
        self.memory = memory
        self.flops = flops
        self.peak_flops = peak_flops
        self.on_step = on_step
        self._tokens_of = tokens
        self._tokens = 0
        self._apart = 0.0  # seconds of this epoch that were not spent in training
        self._began: float | None = None  # the present validation, in seconds of the epoch
        self.counts_samples = throughput or flops is not None
        # Only the methods that have work: one costs time at each of its states.
        if learning_rate or tokens is not None:
            self.on_batch_start = self._look_at_batch
        if gradient_norm:
            self.on_optimizer_step = self._log_norm
        if timed:
            self.on_epoch_start = self._begin_epoch
            self.on_validation_start = self._leave_training
            self.on_exit_validation_end = self._return_to_training
        if timed or memory:
            self.on_epoch_end = self._log_machine

    def __repr__(self) -> str:
        asked = [
            name for name in ("throughput", "memory") if getattr(self, name)
        ]  # the usual two are always shown
        more = "".join(f", {name}=True" for name in asked)
        return (
            f"Monitor(learning_rate={self.learning_rate}, gradient_norm={self.gradient_norm}{more})"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what was counted in this epoch so far."""
        return {"tokens": self._tokens, "seconds_apart": [self._apart, self._began]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._tokens = state["tokens"]
        self._apart, self._began = state["seconds_apart"]

    def _look_at_batch(self, trainer: Any, moment: Moment) -> None:
        context: Context = trainer.context
        if self.learning_rate:
            slots, table = context.slots, context.log_table
            groups = slots[0].optimizer.param_groups if len(slots) == 1 else ()
            rate = groups[0].get("lr") if len(groups) == 1 else None
            # The usual case: one rate, which from one step of a scheduler to the next is the same.
            if rate.__class__ is not float or table is None or not table.is_newest("lr", rate):
                self._log_rates(context)
        if self._tokens_of is not None:
            found = self._tokens_of(context.batch)
            if not is_whole(found):
                refuse(self, "tokens", found, "the function returns a whole number.")
            self._tokens += int(found)

    def _log_rates(self, context: Context) -> None:
        for name, rate in learning_rates(context.optimizers).items():
            log(name, rate, reduce="last", on_step=self.on_step)

    def _log_norm(self, trainer: Any) -> None:
        context: Context = trainer.context
        slot = context.slots[context.optimizer_idx]
        gradients = [one.grad for one in slot.parameters if one.grad is not None]
        if not gradients:
            return
        norm = total_norm(gradients)
        if context.precision.scaler is not None:
            norm = norm / context.precision.scaler.get_scale()
        if context.flushing and slot.window:
            norm = norm * (slot.size / slot.window)  # as the step of a window that is not full does
        several = len(context.slots) > 1
        name = f"grad_norm/{context.optimizer_idx}" if several else "grad_norm"
        log(name, norm, batch_size=1, on_step=self.on_step)

    # -- of the machine --------------------------------------------------------------------------

    def _begin_epoch(self) -> None:
        self._tokens, self._apart, self._began = 0, 0.0, None

    def _leave_training(self, trainer: Any, moment: Moment) -> None:
        if moment.path.startswith("fit."):
            self._began = _seconds(trainer.context)

    def _return_to_training(self, trainer: Any, moment: Moment) -> None:
        if moment.path.startswith("fit.") and self._began is not None:
            self._apart += _seconds(trainer.context) - self._began
            self._began = None

    def _log_machine(self, trainer: Any) -> None:
        context: Context = trainer.context
        counts, found = context.counts, dict[str, float]()
        seconds = _seconds(context) - self._apart
        if seconds > 0:
            samples = counts.sample_in_epoch / seconds
            if self.throughput:
                found["samples_per_second"] = samples
                found["batches_per_second"] = counts.batch_in_epoch / seconds
            if self._tokens_of is not None:
                found["tokens_per_second"] = self._tokens / seconds
            if self.flops is not None and self.peak_flops is not None:
                found["mfu"] = samples * self.flops / self.peak_flops
        if self.memory:
            found["memory_gib"] = _most_memory(context.device) / _GIB
        for name, value in found.items():
            log(name, value, reduce="last")


def _seconds(context: Context) -> float:
    context.read_clock()
    return context.counts.seconds_in_epoch


def _most_memory(device: torch.device) -> int:
    """Return the most bytes that were in use so far: by tensors on an accelerator, else by the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
