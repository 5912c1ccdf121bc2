"""What a LightningModule takes for Lightning's strategy, accelerator and precision plugin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.optim import Optimizer

from statemachine_trainer.integrations.lightning import ranks
from statemachine_trainer.integrations.lightning.calls import HookCalls
from statemachine_trainer.integrations.lightning.library import NotAvailable
from statemachine_trainer.integrations.lightning.standing import Standing
from statemachine_trainer.parallel import to_device


class StrategyView:
    """Runs backward passes and optimizer steps with the hooks around them.

    With several ranks it speaks to the others, as Lightning's `DDPStrategy` does.

    Args:
        standing: Where the run stands.
        calls: Calls the hooks.

    Attributes:
        overflows: Steps that the gradient scaler has left out.
        clip: Clips the gradients of an optimizer before its step; None where that is the module's business.
    """

    handles_gradient_accumulation = False
    restore_checkpoint_after_setup = False
    lightning_restore_optimizer = True
    launcher = None

    def __init__(self, standing: Standing, calls: HookCalls) -> None:
        self._standing = standing
        self._calls = calls
        self.overflows = 0
        self.clip: Callable[[Optimizer], None] | None = None
        self._wrapped: list[Any] = []
        self._plugins: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        raise NotAvailable(
            f"`trainer.strategy.{name}` of Lightning does not exist here: the device of the run is "
            "`trainer.strategy.root_device`. See docs/migration.md."
        )

    # -- backward and step -----------------------------------------------------------------------

    def backward(
        self, loss: torch.Tensor, optimizer: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        """Propagate a loss backward by the module's `backward`, with the hooks before and after."""
        calls, scaler = self._calls, self._standing.context.precision.scaler
        averaging = self._standing.averaging
        if averaging is not None:
            averaging.ready(loss, self._standing.library)
        loss = loss if scaler is None else scaler.scale(loss)
        calls.call("on_before_backward", loss)
        calls.call_module("backward", loss, *args, **kwargs)
        calls.call("on_after_backward")
        if averaging is not None:
            averaging.went_backward()

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

    # -- where it computes -----------------------------------------------------------------------

    @property
    def lightning_module(self) -> Any:
        return self._standing.module

    @property
    def model(self) -> Any:
        """The module; in a fit of several ranks the wrapper around it."""
        averaging = self._standing.averaging
        within_fit = self._standing.stage == "fit" and averaging is not None
        return averaging.wrapper if averaging and within_fit else self._standing.module

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

    # -- ranks -----------------------------------------------------------------------------------

    @property
    def global_rank(self) -> int:
        return ranks.rank()

    @property
    def local_rank(self) -> int:
        return ranks.local_rank()

    @property
    def node_rank(self) -> int:
        return ranks.rank() // ranks.local_size()

    @property
    def world_size(self) -> int:
        return ranks.size()

    @property
    def num_nodes(self) -> int:
        return ranks.size() // ranks.local_size()

    @property
    def num_processes(self) -> int:
        return ranks.local_size()

    @property
    def is_global_zero(self) -> bool:
        return ranks.rank() == 0

    @property
    def is_distributed(self) -> bool:
        return ranks.size() > 1

    @property
    def parallel_devices(self) -> list[torch.device] | None:
        kind = self.root_device.type
        numbers = range(ranks.local_size())
        found = [torch.device("cpu") if kind == "cpu" else torch.device(kind, n) for n in numbers]
        return found if self.is_distributed else None

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int] | None:
        return {"num_replicas": ranks.size(), "rank": ranks.rank()} if self.is_distributed else None

    @property
    def _speaks(self) -> bool:
        """Whether there are other ranks that are here as well."""
        return self.is_distributed and self._standing.speaks

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """Reduce a tensor over the ranks; anything else comes back as it is. A collective."""
        if not isinstance(tensor, torch.Tensor) or not self._speaks:
            return tensor
        reduce = self._standing.library.get("strategies.ddp:_sync_ddp_if_available")
        return reduce(tensor, group, reduce_op=reduce_op)

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Return whether all ranks, or any of them, have decided so. A collective."""
        if not self._speaks:
            return decision
        decided = torch.tensor(int(decision), device=self.root_device)
        count = int(self.reduce(decided, reduce_op="sum"))
        return count == self.world_size if all else count > 0

    def broadcast(self, thing: Any, src: int = 0) -> Any:
        """Return what a rank has. A collective."""
        found = [thing]
        if self._speaks:
            dist.broadcast_object_list(found, src)
        return found[0]

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for all ranks. A collective."""
        if self._speaks:
            ranks.wait_for_all()

    def all_gather(self, tensor: torch.Tensor, group: Any = None, sync_grads: bool = False) -> Any:
        """Return the tensors of all ranks, stacked; in one process the tensor itself. A collective."""
        if not self._speaks:
            return tensor
        gather = self._standing.library.get("strategies.parallel:_all_gather_ddp_if_available")
        return gather(tensor, group=group, sync_grads=sync_grads)

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Within the block, average no gradients over the ranks."""
        averaging = self._standing.averaging
        with nullcontext() if averaging is None else averaging.wrapper.no_sync():
            yield

    def remove_checkpoint(self, filepath: str | Path) -> None:
        """Remove a file that `save_checkpoint` has written; rank 0 does."""
        if self.is_global_zero:
            Path(filepath).unlink(missing_ok=True)
