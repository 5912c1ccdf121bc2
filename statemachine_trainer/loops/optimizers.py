"""What `configure_optimizers` returns, brought into one form, and the work around a step."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR

from statemachine_trainer.loops.errors import LikelyMistake, OptimizerError
from statemachine_trainer.machine.caller import level_of_caller

_CONFIG_KEYS: Final = {"optimizer", "lr_scheduler", "frequency", "monitor"}
_SCHEDULER_KEYS: Final = {
    "scheduler", "interval", "frequency", "monitor", "strict", "name", "reduce_on_plateau",
}  # fmt: skip
_ACCEPTED: Final = (
    "an optimizer, a list of optimizers, two lists (optimizers, schedulers), a dict with "
    "'optimizer' and 'lr_scheduler', a list of such dicts, or None"
)


class SteppedByEpochs(LikelyMistake):
    """A scheduler that goes by steps was given without saying that it does."""


@dataclass(slots=True)
class Scheduler:
    """A learning rate scheduler and when it is stepped.

    Attributes:
        scheduler: Anything with `step`, `state_dict` and `load_state_dict`.
        interval: Stepped after optimizer steps, or at the end of epochs.
        frequency: At every n-th of these, counted over the run. Steps are those of its own
            optimizer.
        monitor: Name of the metric handed to `step`; None for schedulers that take none.
        strict: Whether a monitored metric that does not exist is an error.
        name: For messages and loggers.
    """

    scheduler: Any
    interval: Literal["step", "epoch"] = "epoch"
    frequency: int = 1
    monitor: str | None = None
    strict: bool = True
    name: str | None = None


@dataclass(slots=True)
class OptimizerSlot:
    """One optimizer with all that belongs to it.

    Attributes:
        optimizer: The torch optimizer.
        frequency: Number of batches in a row that are its own, where several optimizers take turns.
        schedulers: Its schedulers.
        steps: Steps it has taken in this run.
        window: Backward passes since its gradients were last cleared and not yet stepped.
        others: The other optimizers, whose parameters are frozen while this one works.
        made_by: The phase that made it, as path of its loop in the tree and name; None if the model
            configured it.
        scheduled_by: The phase that gave it its schedulers; None if they came with it.
        takes_closure: Whether it evaluates the loss itself, several times a step (LBFGS).
    """

    optimizer: Optimizer
    frequency: int | None = None
    schedulers: list[Scheduler] = field(default_factory=list)
    steps: int = 0
    window: int = 0
    others: list[Optimizer] = field(default_factory=list)
    takes_closure: bool = False
    made_by: tuple[str, str] | None = None
    scheduled_by: tuple[str, str] | None = None

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The parameters it updates at present; groups may be added during a run."""
        return _parameters(self.optimizer)

    @contextmanager
    def others_frozen(self) -> Iterator[None]:
        """Switch off, within the block, the gradients of all that only other optimizers update."""
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
    """Bring the return value of `configure_optimizers` into a list of slots.

    Args:
        returned: All that Lightning accepts: an optimizer, a list or tuple of them, two lists
            `(optimizers, schedulers)`, a dict with `optimizer` and `lr_scheduler` (a scheduler or a
            dict with `scheduler`, `interval`, `frequency`, `monitor`, `strict`, `name`), a list of
            such dicts (with `frequency` for taking turns), or None or an empty list for no
            optimizer.

    Raises:
        OptimizerError: It is none of these; the message says what was found and what is accepted.
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
    return slots


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
        raise OptimizerError(f"{_shown(made.scheduler)} is no scheduler: it has no method step().")
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
            "configure_optimizers did not return with it."
        )
    return slots[0]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _needs_argument(function: Callable[..., Any], name: str | None = None) -> bool:
    """Tell whether a function cannot be called without an argument (of that name)."""
    return any(
        one.default is one.empty
        and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
        and name in (None, one.name)
        for one in inspect.signature(function).parameters.values()
    )


def _shown(found: Any) -> str:
    text = repr(found)
    return f"{type(found).__name__} {text if len(text) < 80 else text[:77] + '...'}"
