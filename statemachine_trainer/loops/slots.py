"""Normalizes the return value of `configure_optimizers`, and does the work around a step."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Final, Literal, Protocol

import torch
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR

from statemachine_trainer.loops.loop_errors import LikelyMistake, MissingMetric, OptimizerError
from statemachine_trainer.loops.metrics.named import near_metric
from statemachine_trainer.machine.errors import level_of_caller

_CONFIG_KEYS: Final = {"optimizer", "lr_scheduler", "frequency", "monitor"}
_SCHEDULER_KEYS: Final = {
    "scheduler", "interval", "frequency", "monitor", "strict", "name", "reduce_on_plateau",
}  # fmt: skip
_MOVING: Final = {"last_epoch", "best", "num_bad_epochs", "cooldown_counter", "optimizer"}
_ACCEPTED: Final = (
    "an optimizer, a list of optimizers, two lists (optimizers, schedulers), a dict with "
    "'optimizer' and 'lr_scheduler', a list of such dicts, or None"
)


class SteppedByEpochs(LikelyMistake):
    """A scheduler that counts steps was given without `interval="step"`."""


@dataclass(slots=True)
class Scheduler:
    """A learning rate scheduler, and when to step it.

    Attributes:
        scheduler: Anything with `step`, `state_dict` and `load_state_dict`.
        interval: "step" (after optimizer steps) or "epoch" (at the end of epochs).
        frequency: Step it at every n-th of these, counted over the run. Steps are those of its own optimizer.
        monitor: Name of the metric passed to `step`; None for schedulers that take none.
        strict: Whether a monitored metric that does not exist is an error.
        name: For messages and loggers.
        seen: When the monitored value of its last step was measured.
        configured: Its settings when it was made.
        functions: What the functions do that it was given; None until somebody asks.
    """

    scheduler: Any
    interval: Literal["step", "epoch"] = "epoch"
    frequency: int = 1
    monitor: str | None = None
    strict: bool = True
    name: str | None = None
    seen: tuple[int, int, int] | None = None
    configured: dict[str, Any] = field(default_factory=dict)
    functions: dict[str, str] | None = None


@dataclass(slots=True)
class OptimizerSlot:
    """One optimizer, with its schedulers and counters.

    Attributes:
        optimizer: The torch optimizer.
        frequency: Number of batches in a row that it trains on, if several optimizers take turns.
        schedulers: Its schedulers.
        steps: Steps it has taken in this run.
        window: Backward passes since its gradients were last cleared that it has not yet stepped
            with.
        size: Size of the open window, in backward passes. A changed setting holds for the next window.
        others: The other optimizers. Their parameters are frozen while this one works.
        made_by: The phase that made it: path of its loop in the tree, and name. None if the model configured it.
        scheduled_by: The phase that made its schedulers; None if they were configured with it.
        takes_closure: Whether it evaluates the loss itself, several times a step (LBFGS).
        configured: The settings of its parameter groups when it was made.
    """

    optimizer: Optimizer
    frequency: int | None = None
    schedulers: list[Scheduler] = field(default_factory=list)
    steps: int = 0
    window: int = 0
    size: int = 0
    others: list[Optimizer] = field(default_factory=list)
    takes_closure: bool = False
    configured: list[dict[str, Any]] = field(default_factory=list)
    made_by: tuple[str, str] | None = None
    scheduled_by: tuple[str, str] | None = None

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The parameters that it updates now; groups may be added during a run."""
        return _parameters(self.optimizer)

    @contextmanager
    def others_frozen(self) -> Iterator[None]:
        """Within the block, freeze the parameters that only other optimizers update."""
        own = {id(parameter) for parameter in self.parameters}
        foreign = (p for other in self.others for p in _parameters(other))
        frozen = [p for p in foreign if p.requires_grad and id(p) not in own]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)


def read_optimizers(returned: Any) -> list[OptimizerSlot]:
    """Convert the return value of `configure_optimizers` to a list of slots.

    Args:
        returned: Any form that Lightning accepts: an optimizer, a list or tuple of them, two lists
            `(optimizers, schedulers)`, a dict with `optimizer` and `lr_scheduler` (a scheduler or a
            dict with `scheduler`, `interval`, `frequency`, `monitor`, `strict`, `name`), a list of
            such dicts (with `frequency` for taking turns), or None or an empty list for no
            optimizer.

    Raises:
        OptimizerError: It has none of these forms. The message says what was found and what is
            accepted.
    """
    slots = list(_slots(returned))
    frequencies = [slot.frequency for slot in slots]
    if any(f is not None for f in frequencies) and None in frequencies:
        raise OptimizerError("Give a frequency to every optimizer or to none.")
    if len({id(slot.optimizer) for slot in slots}) < len(slots):
        raise OptimizerError("configure_optimizers returned the same optimizer twice.")
    for slot in slots:
        slot.others = [other.optimizer for other in slots if other is not slot]
        slot.takes_closure = _needs_argument(type(slot.optimizer).step, "closure")
        slot.configured = [
            {name: value for name, value in group.items() if name != "params"}
            for group in slot.optimizer.param_groups
        ]
        for one in slot.schedulers:
            one.configured = _settings_of_scheduler(one.scheduler)
    return slots


def _settings_of_scheduler(scheduler: Any) -> dict[str, Any]:
    """Return the settings of a scheduler: its attributes without its counters."""
    return {
        name: copy.copy(value)
        for name, value in getattr(scheduler, "__dict__", {}).items()
        if not name.startswith("_") and name not in _MOVING
    }


def _parameters(optimizer: Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _slots(returned: Any) -> Iterable[OptimizerSlot]:
    if returned is None:
        return
    if isinstance(returned, Optimizer):
        yield OptimizerSlot(returned)
    elif isinstance(returned, Mapping):
        yield _from_config(returned)
    elif _is_pair_of_lists(returned):
        optimizers, schedulers = returned
        slots = [OptimizerSlot(_optimizer(one)) for one in optimizers]
        for config in schedulers:
            scheduler = _scheduler(config)
            _owner_of(scheduler, slots).schedulers.append(scheduler)
        yield from slots
    elif isinstance(returned, Sequence) and not isinstance(returned, str):
        for one in returned:
            yield _from_config(one) if isinstance(one, Mapping) else OptimizerSlot(_optimizer(one))
    else:
        raise OptimizerError(
            f"configure_optimizers returned {_shown(returned)}. It may return {_ACCEPTED}."
        )


def _is_pair_of_lists(returned: Any) -> bool:
    return (
        isinstance(returned, tuple | list)
        and len(returned) == 2
        and isinstance(returned[0], list | tuple)
        and isinstance(returned[1], list | tuple)
    )


def _from_config(config: Mapping[str, Any]) -> OptimizerSlot:
    if "optimizer" not in config or (set(config) - _CONFIG_KEYS):
        raise OptimizerError(
            f"configure_optimizers returned a dict with the keys {sorted(map(str, config))}; it "
            f"needs 'optimizer' and may have {', '.join(sorted(_CONFIG_KEYS - {'optimizer'}))}."
        )
    frequency = config.get("frequency")
    if frequency is not None and not _is_count(frequency):
        raise OptimizerError(
            f"The frequency of an optimizer is a whole number from 1, not {frequency!r}."
        )
    slot = OptimizerSlot(_optimizer(config["optimizer"]), frequency)
    if config.get("lr_scheduler") is not None:
        scheduler = _scheduler(config["lr_scheduler"], monitor=config.get("monitor"))
        _owner_of(scheduler, [slot]).schedulers.append(scheduler)
    return slot


def _optimizer(found: Any) -> Optimizer:
    if not isinstance(found, Optimizer):
        raise OptimizerError(
            f"configure_optimizers returned {_shown(found)} in the place of an optimizer. It may "
            f"return {_ACCEPTED}."
        )
    return found


def _scheduler(config: Any, monitor: str | None = None) -> Scheduler:
    if not isinstance(config, Mapping):
        config = {"scheduler": config}
    if "scheduler" not in config or (unknown := {str(k) for k in config} - _SCHEDULER_KEYS):
        what = (
            f"has the unknown key {min(unknown)!r}"
            if "scheduler" in config
            else "has no 'scheduler'"
        )
        raise OptimizerError(
            f"A scheduler's dict {what}; its keys are {', '.join(sorted(_SCHEDULER_KEYS))}."
        )
    if "interval" not in config and isinstance(config["scheduler"], OneCycleLR | CyclicLR):
        kind = type(config["scheduler"]).__name__
        warnings.warn(
            f"{kind} goes by steps, and is stepped once an epoch unless told otherwise. Say which: "
            "{'scheduler': scheduler, 'interval': 'step'}, or 'epoch'.",
            SteppedByEpochs,
            stacklevel=level_of_caller(),
        )
    made = Scheduler(
        config["scheduler"],
        config.get("interval", "epoch"),
        config.get("frequency", 1),
        config.get("monitor", monitor),
        config.get("strict", True),
        config.get("name"),
    )
    if not callable(getattr(made.scheduler, "step", None)):
        raise OptimizerError(
            f"{_shown(made.scheduler)} is no scheduler: it has no method step(). Give one, or a function of the "
            "optimizer, such as lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 10), or "
            "warmup(500, then='cosine')."
        )
    if made.interval not in ("step", "epoch"):
        raise OptimizerError(f"A scheduler's interval is 'step' or 'epoch', not {made.interval!r}.")
    if not _is_count(made.frequency):
        raise OptimizerError(
            f"A scheduler's frequency is a whole number from 1, not {made.frequency!r}."
        )
    if not config.get("reduce_on_plateau") and not _needs_argument(made.scheduler.step):
        made.monitor = None
    elif made.monitor is None:
        raise OptimizerError(
            f"{type(made.scheduler).__name__} needs to know which metric it watches: return "
            "{'optimizer': ..., 'lr_scheduler': ..., 'monitor': 'val_loss'}."
        )
    return made


def _owner_of(scheduler: Scheduler, slots: list[OptimizerSlot]) -> OptimizerSlot:
    optimizer = getattr(scheduler.scheduler, "optimizer", None)
    for slot in slots:
        if slot.optimizer is optimizer:
            return slot
    if not slots or isinstance(optimizer, Optimizer):
        raise OptimizerError(
            f"The scheduler {type(scheduler.scheduler).__name__} was made for an optimizer that "
            "configure_optimizers did not return with it. Make it for the one that is returned: "
            "StepLR(optimizer, ...)."
        )
    return slots[0]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _needs_argument(function: Callable[..., Any], name: str | None = None) -> bool:
    """Return whether a function has a required argument (of this name)."""
    return any(
        one.default is one.empty
        and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
        and name in (None, one.name)
        for one in inspect.signature(function).parameters.values()
    )


def _shown(found: Any) -> str:
    if isinstance(found, type):
        return f"the class {found.__name__} itself, and no object of it"
    text = repr(found)
    plain = isinstance(found, str | int | float | None)
    return (
        f"{type(found).__name__} {text}"
        if plain and len(text) < 80
        else f"a {type(found).__name__}"
    )


# -- Whose turn it is -----------------------------------------------------------------------------


class Turns:
    """Decides which optimizers work on a batch: all, or one after the other by their frequencies.

    Frequencies are counted over the run, across the ends of epochs, as for schedulers.

    Args:
        slots: The optimizers.
        only: Indices of the optimizers in use; None for all.
    """

    def __init__(self, slots: Sequence[OptimizerSlot], only: Collection[int] | None = None) -> None:
        frequencies = [slot.frequency for slot in slots if slot.frequency is not None]
        at_work = [i for i in range(len(slots)) if only is None or i in only]
        self.everybody: tuple[int, ...] = tuple(at_work)
        self._cycle = [i for i in at_work if frequencies for _ in range(frequencies[i])]

    def at(self, batch: int) -> tuple[int, ...]:
        """Return the indices of the optimizers that work on the batch of this number in the run."""
        if not self._cycle:
            return self.everybody
        return (self._cycle[batch % len(self._cycle)],)


# -- Stepping learning rate schedulers ------------------------------------------------------------


class HasMetrics(Protocol):
    """The part of the context that schedulers need."""

    @property
    def validation(self) -> Sequence[object]:
        """The validation loaders."""
        ...

    def read_metrics(self) -> Mapping[str, float]:
        """Return the newest value of every metric."""
        ...

    def measured_at(self, name: str) -> tuple[int, int, int] | None:
        """Return when the newest value of a metric was measured."""
        ...

    @property
    def awaits_validation(self) -> bool:
        """Whether the first validation is still to come."""
        ...


def step_schedulers(
    slot: OptimizerSlot,
    interval: Literal["step", "epoch"],
    count: int,
    metrics: HasMetrics,
) -> None:
    """Step the schedulers of an optimizer that are due.

    A scheduler that monitors a metric gets each value once: an epoch without a validation has no
    new value.

    Args:
        slot: The optimizer.
        interval: Whether a step or an epoch has just ended.
        count: How many of these the optimizer has done in the run.
        metrics: The context of the run. Read only when a monitored value is due: reading waits for
            the device.

    Raises:
        MissingMetric: At the end of an epoch, a strict scheduler monitors a name that was never
            logged. Schedulers that count steps wait for the end of the epoch, and all wait for the
            first validation, if one will come.
    """
    for one in slot.schedulers:
        if one.monitor is None:
            if one.interval == interval and count % one.frequency == 0:
                one.scheduler.step()
        elif interval == "epoch" or (one.interval == "step" and count % one.frequency == 0):
            _step_monitored(one, interval, count, metrics)


def _step_monitored(
    one: Scheduler, interval: Literal["step", "epoch"], count: int, metrics: HasMetrics
) -> None:
    assert one.monitor is not None
    due = one.interval == interval and count % one.frequency == 0
    known = metrics.read_metrics()
    if one.monitor in known:
        measured = metrics.measured_at(one.monitor)
        if due and measured != one.seen:
            one.seen = measured
            one.scheduler.step(known[one.monitor])
    elif metrics.awaits_validation:
        return
    elif one.strict and interval == "epoch" and (due or one.interval == "step"):
        raise MissingMetric(
            f"The scheduler {one.name or type(one.scheduler).__name__} monitors {one.monitor!r}, "
            f"which was not logged. {near_metric(one.monitor, known, validated=bool(metrics.validation))} With "
            "strict=False it is left alone until there is a value."
        )


# -- Steps through the gradient scaler of fp16 ----------------------------------------------------

# Micikevicius et al., "Mixed Precision Training", ICLR 2018.


def step_scaled(slot: OptimizerSlot, slots: Sequence[OptimizerSlot], scaler: GradScaler) -> bool:
    """Unscale the gradients of an optimizer and step it, unless one of them has overflowed.

    The scaler is updated after each step of each optimizer. Other optimizers may then hold
    gradients of an open accumulation window. These are rescaled to the new scale, by which they
    will be divided. That is exact, because scales are powers of two.

    Args:
        slot: The optimizer; its window is closed.
        slots: All optimizers.
        scaler: The scaler of the run.

    Returns:
        Whether the optimizer stepped.
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
