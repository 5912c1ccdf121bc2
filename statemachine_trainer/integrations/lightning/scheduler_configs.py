"""Learning rate schedulers: what `configure_optimizers` returns, and Lightning's list of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from statemachine_trainer.integrations.lightning.calls import HookCalls
from statemachine_trainer.loops.slots import OptimizerSlot, Scheduler

# -- What `configure_optimizers` returns ----------------------------------------------------------


class HookedScheduler:
    """A scheduler that is stepped by the module's own `lr_scheduler_step`.

    Args:
        scheduler: The scheduler, of any kind.
        calls: Calls the hook.
    """

    def __init__(self, scheduler: Any, calls: HookCalls) -> None:
        self.scheduler = scheduler
        self._calls = calls

    @property
    def optimizer(self) -> Any:
        """The optimizer whose learning rates it sets."""
        return self.scheduler.optimizer

    def step(self, metric: float | None = None) -> None:
        """Let the module step it."""
        self._calls.call_module("lr_scheduler_step", self.scheduler, metric)

    def state_dict(self) -> Any:
        """Return the state of the scheduler."""
        return self.scheduler.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Load a state of the scheduler."""
        self.scheduler.load_state_dict(state)


def with_scheduler_hook(returned: Any, calls: HookCalls, *, automatic: bool) -> Any:
    """Let the schedulers be stepped by the module if it has an `lr_scheduler_step`.

    Args:
        returned: What `configure_optimizers` returned.
        calls: Calls the hook.
        automatic: Whether optimization is automatic; by hand nobody but the module steps them.
    """
    if returned is None and automatic:
        return NothingToOptimize()
    own = automatic and calls.library.is_overridden("lr_scheduler_step", calls.module)

    def settle(config: Any) -> Any:
        if not isinstance(config, Mapping):
            config = {"scheduler": config}
        if "scheduler" not in config:
            return config
        scheduler = config["scheduler"]
        plateau = config.get("reduce_on_plateau", isinstance(scheduler, ReduceLROnPlateau))
        if automatic and not own:
            return {**config, "reduce_on_plateau": plateau}
        if not automatic:
            config = {k: v for k, v in config.items() if k not in ("monitor", "strict")}
            plateau = False
        hooked = HookedScheduler(scheduler, calls)
        return {**config, "reduce_on_plateau": plateau, "scheduler": hooked}

    if isinstance(returned, Mapping):
        return _settled(returned, settle)
    if _is_pair(returned):
        optimizers, schedulers = returned
        many = schedulers if isinstance(schedulers, list | tuple) else [schedulers]
        return list(optimizers), [settle(one) for one in many]
    if isinstance(returned, list | tuple):
        return [_settled(one, settle) if isinstance(one, Mapping) else one for one in returned]
    return returned


class NothingToOptimize(Optimizer):
    """Stands for the optimizer of a module that configures none, so that its steps are counted."""

    def __init__(self) -> None:
        super().__init__([torch.zeros(1)], {})

    def step(self, closure: Any = None) -> Any:
        """Call the closure, and change nothing."""
        return None if closure is None else closure()


def _settled(config: Mapping[str, Any], settle: Callable[[Any], Any]) -> dict[str, Any]:
    if config.get("lr_scheduler") is None:
        return dict(config)
    return {**config, "lr_scheduler": settle(config["lr_scheduler"])}


def _is_pair(returned: Any) -> bool:
    """Whether optimizers and schedulers were returned apart; one scheduler may stand alone."""
    if not isinstance(returned, list | tuple) or len(returned) != 2:
        return False
    optimizers, schedulers = returned
    return isinstance(optimizers, list | tuple) and not (
        isinstance(schedulers, Mapping) and "optimizer" in schedulers
    )


# -- Lightning's list of schedulers ---------------------------------------------------------------


class SchedulerConfigs(list[Any]):
    """The schedulers of a run as Lightning's `LRSchedulerConfig`; changing the list changes the run.

    Args:
        slots: The optimizers with their schedulers.
        make: Lightning's class for one.
    """

    def __init__(self, slots: list[OptimizerSlot], make: Callable[..., Any]) -> None:
        self._slots = slots
        self._places = [(slot, index) for slot in slots for index in range(len(slot.schedulers))]
        super().__init__(_config(slot.schedulers[index], make) for slot, index in self._places)

    def __setitem__(self, index: Any, config: Any) -> None:
        super().__setitem__(index, config)
        slot, place = self._places[index]
        slot.schedulers[place] = _scheduler(config)

    def append(self, config: Any) -> None:
        """Add a scheduler to the optimizer that it is of."""
        super().append(config)
        slot = next(s for s in self._slots if s.optimizer is config.scheduler.optimizer)
        self._places.append((slot, len(slot.schedulers)))
        slot.schedulers.append(_scheduler(config))

    def clear(self) -> None:
        """Remove all schedulers."""
        super().clear()
        self._places.clear()
        for slot in self._slots:
            slot.schedulers.clear()


def _config(one: Scheduler, make: Callable[..., Any]) -> Any:
    return make(
        getattr(one.scheduler, "scheduler", one.scheduler),
        name=one.name,
        interval=one.interval,
        frequency=one.frequency,
        reduce_on_plateau=one.monitor is not None,
        monitor=one.monitor,
        strict=one.strict,
    )


def _scheduler(config: Any) -> Scheduler:
    monitor = config.monitor if config.reduce_on_plateau else None
    return Scheduler(
        config.scheduler, config.interval, config.frequency, monitor, config.strict, config.name
    )
