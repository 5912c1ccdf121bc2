"""What a LightningModule takes for Lightning's strategy and precision plugin: backward and step."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from statemachine_trainer.integrations.lightning.library import NotAvailable

if TYPE_CHECKING:
    from statemachine_trainer.integrations.lightning.view import TrainerView


class StrategyView:
    """Runs backward passes and optimizer steps with the hooks around them, in one process.

    Args:
        view: What the module takes for Lightning's trainer.

    Attributes:
        overflows: Steps that the gradient scaler has left out.
        clip: Clips the gradients of an optimizer before its step; None where that is the module's business.
    """

    handles_gradient_accumulation = False
    is_global_zero = True

    def __init__(self, view: TrainerView) -> None:
        self._view = view
        self.overflows = 0
        self.clip: Callable[[Optimizer], None] | None = None
        self._wrapped: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        raise NotAvailable(
            f"`trainer.strategy.{name}` of Lightning does not exist here: the fit runs in one process, on "
            "`trainer.strategy.root_device`. See docs/migration.md."
        )

    # -- backward and step -----------------------------------------------------------------------

    def backward(
        self, loss: torch.Tensor, optimizer: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        """Propagate a loss backward by the module's `backward`, with the hooks before and after."""
        hooks, scaler = self._view.hooks, self._view.context.precision.scaler
        loss = loss if scaler is None else scaler.scale(loss)
        hooks.call("on_before_backward", loss)
        hooks.call_module("backward", loss, *args, **kwargs)
        hooks.call("on_after_backward")

    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any
    ) -> Any:
        """Step an optimizer; the closure runs first, then the hooks that look at its gradients."""
        scaler = self._view.context.precision.scaler
        if scaler is not None and not self._view.context.manual:
            return self._scaled_step(optimizer, closure, scaler)

        def closure_with_hooks() -> Any:
            result = closure()
            self._before_step(optimizer)
            return result

        if scaler is not None:  # `step` goes through the scaler, which takes no closure
            result = closure()
            scaler.unscale_(optimizer)
            self._before_step(optimizer)
            optimizer.step()
            return result
        return optimizer.step(closure=closure_with_hooks, **kwargs)

    def _scaled_step(self, optimizer: Optimizer, closure: Callable[[], Any], scaler: Any) -> Any:
        result = closure()
        scaler.unscale_(optimizer)
        self._before_step(optimizer)
        stepped: list[bool] = []
        hook = optimizer.register_step_post_hook(lambda *_: stepped.append(True))
        try:
            scaler.step(optimizer)
        finally:
            hook.remove()
        scaler.update()
        self.overflows += not stepped
        return result

    def _before_step(self, optimizer: Optimizer) -> None:
        self._view.hooks.call("on_before_optimizer_step", optimizer)
        if self.clip is not None and not self._view.context.manual:
            self.clip(optimizer)

    def clip_gradients(
        self, optimizer: Any, clip_val: float = 0.0, algorithm: Any = "norm"
    ) -> None:
        """Clip the gradients of an optimizer by their norm or by value; 0 for not at all."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if clip_val <= 0:
            return
        if str(getattr(algorithm, "value", algorithm)) == "value":
            torch.nn.utils.clip_grad_value_(parameters, clip_val)
        else:
            torch.nn.utils.clip_grad_norm_(parameters, clip_val)

    # -- optimizers ------------------------------------------------------------------------------

    @property
    def _lightning_optimizers(self) -> list[Any]:
        return [self.wrapped(optimizer) for optimizer in self._view.optimizers]

    def wrapped(self, optimizer: Optimizer) -> Any:
        """Return Lightning's wrapper of an optimizer, always the same one."""
        for known in self._wrapped:
            if known.optimizer is optimizer:
                return known
        living = self._view.optimizers
        self._wrapped = [one for one in self._wrapped if any(one.optimizer is o for o in living)]
        made = self._view.library.get("core.optimizer:LightningOptimizer")(optimizer)
        made._strategy = self
        self._wrapped.append(made)
        return made

    # -- one process -----------------------------------------------------------------------------

    @property
    def lightning_module(self) -> Any:
        return self._view.module

    @property
    def model(self) -> Any:
        return self._view.module

    @property
    def precision_plugin(self) -> StrategyView:
        return self

    @property
    def root_device(self) -> torch.device:
        return self._view.context.device

    def reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return tensor

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        return decision

    def broadcast(self, thing: Any, src: int = 0) -> Any:
        return thing

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for nobody."""

    def all_gather(self, tensor: torch.Tensor, group: Any = None, sync_grads: bool = False) -> Any:
        """Return what Lightning returns in one process: the tensor itself."""
        return tensor

    def remove_checkpoint(self, filepath: str | Path) -> None:
        """Remove a file that `save_checkpoint` has written."""
        Path(filepath).unlink(missing_ok=True)


# -- Checkpoints in Lightning's own format --------------------------------------------------------


def write_checkpoint(view: TrainerView, path: Path, *, weights_only: bool) -> None:
    """Write what `LightningModule.load_from_checkpoint` reads.

    The file holds pickled objects: hyper-parameters may be of any class.

    Args:
        view: What the module takes for Lightning's trainer.
        path: Of the file; its folder is made if need be.
        weights_only: Leave out optimizers, schedulers and callbacks.
    """
    module, hooks = view.module, view.hooks
    checkpoint: dict[str, Any] = {
        "epoch": view.current_epoch,
        "global_step": view.global_step,
        "pytorch-lightning_version": view.library.version,
        "state_dict": module.state_dict(),
        "loops": {},
    }
    if not weights_only:
        states = {one.state_key: one.state_dict() for one in hooks.callbacks}
        checkpoint["callbacks"] = {key: state for key, state in states.items() if state}
        checkpoint["optimizer_states"] = [one.state_dict() for one in view.optimizers]
        configs = view.lr_scheduler_configs
        checkpoint["lr_schedulers"] = [one.scheduler.state_dict() for one in configs]
    if getattr(module, "hparams", None):
        checkpoint[module.CHECKPOINT_HYPER_PARAMS_NAME] = getattr(module, "_hparams_name", "kwargs")
        checkpoint[module.CHECKPOINT_HYPER_PARAMS_KEY] = dict(module.hparams)
    for callback in hooks.callbacks:
        callback.on_save_checkpoint(view, module, checkpoint)
    module.on_save_checkpoint(checkpoint)
    _write(checkpoint, path)


def _write(tree: dict[str, Any], path: Path) -> None:
    """Write a file that is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(tree, file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
