"""What a LightningModule takes for Lightning's strategy, accelerator and precision plugin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from statemachine_trainer.integrations.lightning.calls import HookCalls
from statemachine_trainer.integrations.lightning.library import NotAvailable
from statemachine_trainer.integrations.lightning.standing import Standing
from statemachine_trainer.parallel import to_device


class StrategyView:
    """Runs backward passes and optimizer steps with the hooks around them, in one process.

    Args:
        standing: Where the run stands.
        calls: Calls the hooks.

    Attributes:
        overflows: Steps that the gradient scaler has left out.
        clip: Clips the gradients of an optimizer before its step; None where that is the module's business.
    """

    handles_gradient_accumulation = False
    is_global_zero = True
    global_rank = local_rank = node_rank = 0
    world_size = 1
    restore_checkpoint_after_setup = False
    lightning_restore_optimizer = True
    launcher = None
    parallel_devices = None

    def __init__(self, standing: Standing, calls: HookCalls) -> None:
        self._standing = standing
        self._calls = calls
        self.overflows = 0
        self.clip: Callable[[Optimizer], None] | None = None
        self._wrapped: list[Any] = []
        self._plugins: dict[str, Any] = {}

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
        calls, scaler = self._calls, self._standing.context.precision.scaler
        loss = loss if scaler is None else scaler.scale(loss)
        calls.call("on_before_backward", loss)
        calls.call_module("backward", loss, *args, **kwargs)
        calls.call("on_after_backward")

    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any
    ) -> Any:
        """Step an optimizer; the closure runs first, then the hooks that look at its gradients."""
        context = self._standing.context
        scaler = context.precision.scaler
        if scaler is not None and not context.manual:
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
        self._calls.call("on_before_optimizer_step", optimizer)
        if self.clip is not None and not self._standing.context.manual:
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
    def optimizers(self) -> list[Optimizer]:
        return self._standing.fitting.optimizers

    @property
    def _lightning_optimizers(self) -> list[Any]:
        return [self.wrapped(optimizer) for optimizer in self.optimizers]

    def wrapped(self, optimizer: Optimizer) -> Any:
        """Return Lightning's wrapper of an optimizer, always the same one."""
        for known in self._wrapped:
            if known.optimizer is optimizer:
                return known
        living = self.optimizers
        self._wrapped = [one for one in self._wrapped if any(one.optimizer is o for o in living)]
        made = self._standing.library.get("core.optimizer:LightningOptimizer")(optimizer)
        made._strategy = self
        self._wrapped.append(made)
        return made

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the state of an optimizer, as a Lightning checkpoint has it."""
        return dict(getattr(optimizer, "optimizer", optimizer).state_dict())

    # -- one process -----------------------------------------------------------------------------

    @property
    def lightning_module(self) -> Any:
        return self._standing.module

    @property
    def model(self) -> Any:
        return self._standing.module

    @property
    def precision_plugin(self) -> Any:
        """Lightning's plugin for the precision of the run; gradients are clipped here."""
        plugin = self._plugins.get(self.precision)
        if plugin is None:
            plugin = self._plugins[self.precision] = self._make_plugin(self.precision)
            plugin.clip_gradients = self.clip_gradients
        return plugin

    def _make_plugin(self, precision: str) -> Any:
        get = self._standing.library.get
        if precision == "32-true":
            return get("plugins:Precision")()
        return get("plugins:MixedPrecision")(precision, self.root_device.type, self.scaler)

    @property
    def precision(self) -> str:
        """Lightning's name of the precision: "32-true", "bf16-mixed" or "16-mixed"."""
        names = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
        if not self._standing.has_begun:
            return "32-true"
        name = self._standing.context.precision.name
        return names.get(name, name)

    @property
    def scaler(self) -> Any:
        return self._standing.context.precision.scaler if self._standing.has_begun else None

    @property
    def accelerator(self) -> Any:
        """Lightning's accelerator for the device of the run."""
        kinds = {"cuda": "CUDAAccelerator", "mps": "MPSAccelerator"}
        name = kinds.get(self.root_device.type, "CPUAccelerator")
        return self._standing.library.get(f"accelerators:{name}")()

    @property
    def root_device(self) -> torch.device:
        if not self._standing.has_begun:
            return torch.device("cpu")
        return self._standing.context.device

    def batch_to_device(
        self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0
    ) -> Any:
        """Move a batch to a device; that of the run unless told."""
        return to_device(batch, self.root_device if device is None else device)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the weights of the module."""
        return dict(self._standing.module.state_dict())

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load the weights of a Lightning checkpoint into the module."""
        self._standing.module.load_state_dict(checkpoint["state_dict"], strict=strict)

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
