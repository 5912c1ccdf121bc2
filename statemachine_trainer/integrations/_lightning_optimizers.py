"""What `configure_optimizers` of a LightningModule returns, for our trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

if TYPE_CHECKING:
    from statemachine_trainer.integrations._lightning_hooks import Hooks


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
