"""A LightningModule that several ranks train: what averages its gradients, and who reads which data.

All of it is done as Lightning's `DDPStrategy` does it, with its own functions where it has some.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from statemachine_trainer.integrations.lightning.library import Library, NotSupported
from statemachine_trainer.loops.steps import Steps
from statemachine_trainer.parallel.gradient_sync import Ddp, GradientSync
from statemachine_trainer.parallel.ranks import Ranks

_SEED: Final = "PL_GLOBAL_SEED"
"""Set by `seed_everything` of Lightning, whose strategies seed again by it."""


class LightningDdp(Ddp):
    """A LightningModule in `DistributedDataParallel`, which may also optimize by hand.

    By hand each `manual_backward` averages gradients: `ready` makes the wrapper wait for it.

    Args:
        wrapper: Around the module, or around the model made of it.
        by_hand: Whether the training step goes backward itself.
    """

    def __init__(self, wrapper: DistributedDataParallel, *, by_hand: bool) -> None:
        super().__init__(wrapper)
        self._by_hand = by_hand
        self._has_laid_out = False

    def through(self, step: Callable[..., Any], *, own: bool = True) -> Callable[..., Any]:
        """Return a function that runs a step through the wrapper.

        A step that goes backward itself has done so when the wrapper looks at its output: then it is to
        prepare no further backward pass.
        """
        if not self._by_hand:
            return super().through(step, own=own)
        wrapper = self.wrapper

        def by_hand(*arguments: Any, **named: Any) -> Any:
            output = step(*arguments, **named)
            wrapper.require_backward_grad_sync = False
            return output

        inside = super().through(by_hand, own=own)

        def call(*arguments: Any, **named: Any) -> Any:
            # Else the first step of a wrapper, and only that one, would begin with the buffers of rank 0:
            # a resumed run has a new wrapper, and buffers that differ.
            wrapper.require_forward_param_sync = False
            try:
                return inside(*arguments, **named)
            finally:
                wrapper.require_backward_grad_sync = True

        return call

    def share_buffers(self) -> None:
        # By hand, as in Lightning, each rank keeps those of its own from the first step on.
        if not self._by_hand:
            super().share_buffers()

    def ready(self, loss: torch.Tensor, library: Library) -> None:
        """Let the wrapper average the gradients of the backward pass that comes now, if that is made by hand."""
        if self._by_hand:
            library.get("overrides.distributed:prepare_for_backward")(self.wrapper, loss)

    def went_backward(self) -> None:
        """Average what a wrapper with `static_graph=True` has held back in its first backward pass by hand."""
        if self._by_hand and self.wrapper.static_graph and not self._has_laid_out:
            self._has_laid_out = True
            reducer: Any = self.wrapper.reducer
            reducer._delay_all_reduce()


def wrap(module: nn.Module, steps: Steps, device: torch.device) -> LightningDdp | None:
    """Let the gradients of a fit be averaged over the ranks; None where there are no ranks.

    A model that comes in a `DistributedDataParallel` keeps that one. Else the module is wrapped here, as
    Lightning wraps it: after `setup` and `configure_model`, before its optimizers are made. A module
    that has wrapped networks in it is left alone.

    Args:
        module: The LightningModule.
        steps: The steps of the model made of it; they get what averages the gradients.
        device: That of the run, on which the module is.

    Raises:
        NotSupported: Its parameters are cut up, were made after it was wrapped, or the device is that of
            another rank.
    """
    name, sync = type(module).__name__, steps.sync
    if sync.sees_all:
        raise NotSupported(
            f"{name} is cut up by {sync.by}, and a LightningModule is trained by several ranks in "
            "DistributedDataParallel only. Leave out fully_shard: the module is wrapped when the fit begins."
        )
    if isinstance(sync, Ddp):
        _refuse_late_parameters(name, module, sync)
        wrapper = sync.wrapper
    elif Ranks.are_up() and _is_to_be_wrapped(module):
        _refuse_device_of_another(name, device)
        settings: dict[str, Any] = {} if device.type == "cpu" else {"device_ids": [device]}
        wrapper = DistributedDataParallel(module, **settings)
    else:
        return None
    made = LightningDdp(wrapper, by_hand=steps.by_hand)
    made.module = module
    steps.sync = made
    return made


def _is_to_be_wrapped(module: nn.Module) -> bool:
    inside = any(isinstance(one, DistributedDataParallel) for one in module.modules())
    return not inside and any(one.requires_grad for one in module.parameters())


def _refuse_late_parameters(name: str, module: nn.Module, sync: GradientSync) -> None:
    assert isinstance(sync, Ddp)
    known = {id(one) for one in sync.wrapper.parameters()}
    averaged = {id(one) for one in getattr(sync.wrapper, "_module_parameters", ())}
    late = [
        key
        for key, one in module.named_parameters()
        if one.requires_grad and (id(one) not in known or (averaged and id(one) not in averaged))
    ]
    if late:
        raise NotSupported(
            f"{late[0]!r} of {name} was made, or unfrozen, after the module was wrapped in "
            "DistributedDataParallel, so that its gradients would not be averaged. Give "
            "`lightning.module(lit)` without a wrapper: it is wrapped after `setup` and `configure_model`."
        )


def _refuse_device_of_another(name: str, device: torch.device) -> None:
    number = os.environ.get("LOCAL_RANK", "0")
    if device.type != "cpu" and str(device.index or 0) != number:
        raise NotSupported(
            f"{name} is trained by several ranks, and this one, of LOCAL_RANK={number}, is on {device}. Give each "
            "rank a device of its own: Trainer(device=f'cuda:{os.environ[\"LOCAL_RANK\"]}')."
        )


# -- What Lightning's strategy does at the start ---------------------------------------------------


def begin(library: Library) -> None:
    """Let `rank_zero_only` of Lightning know this rank, and seed again where `seed_everything` was called."""
    if not Ranks.are_up():
        return
    for path in ("strategies.ddp:rank_zero_only", "strategies.ddp:utils_rank_zero_only"):
        library.get(path).rank = dist.get_rank()
    if _SEED in os.environ:
        library.get("strategies.ddp:reset_seed")()


def prepares_data(thing: Any) -> bool:
    """Whether this rank is to call `prepare_data` of a module or data module."""
    node = local_rank() if getattr(thing, "prepare_data_per_node", True) else rank()
    return node == 0


def wait_for_all() -> None:
    """Wait until all ranks have come here. A collective."""
    if Ranks.are_up():
        dist.barrier()


def rank() -> int:
    """Number of this process among the ranks; 0 if it is alone."""
    return dist.get_rank() if Ranks.are_up() else 0


def size() -> int:
    """How many ranks there are; 1 without."""
    return dist.get_world_size() if Ranks.are_up() else 1


def local_rank() -> int:
    """Number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", rank())) if Ranks.are_up() else 0


def local_size() -> int:
    """How many ranks there are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", size())) if Ranks.are_up() else 1


# -- Who reads what --------------------------------------------------------------------------------


class Dealer:
    """Deals the samples of loaders out to the ranks, as Lightning does with `use_distributed_sampler`.

    Args:
        library: Lightning, whose functions make the samplers.
    """

    def __init__(self, library: Library) -> None:
        self._library = library

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the block, note how loaders are made, so that those of a class of its own can be made anew."""
        if not Ranks.are_up():
            yield
            return
        replaced = self._library.get("trainer.connectors.data_connector:_replace_dunder_methods")
        with ExitStack() as stack:
            stack.enter_context(replaced(DataLoader, "dataset"))
            stack.enter_context(replaced(BatchSampler))
            yield

    def deal(self, loaders: Any, *, training: bool) -> Any:
        """Return loaders of which each rank reads its own samples; without ranks they stay as they are.

        Those that have a `DistributedSampler`, and streams, stay as well.

        Args:
            loaders: One loader, or a list, tuple or dict of them, or a `CombinedLoader`.
            training: Whether they are those of training, which Lightning shuffles.
        """
        if not Ranks.are_up():
            return loaders
        if isinstance(loaders, DataLoader):
            return self._dealt(loaders, training=training)
        if isinstance(loaders, self._library.get("utilities.combined_loader:CombinedLoader")):
            loaders.flattened = [self.deal(one, training=training) for one in loaders.flattened]
            return loaders
        if isinstance(loaders, Mapping):
            return {name: self.deal(one, training=training) for name, one in loaders.items()}
        if isinstance(loaders, list | tuple) and type(loaders) in (list, tuple):
            return type(loaders)(self.deal(one, training=training) for one in loaders)
        return loaders

    def _dealt(self, loader: DataLoader[Any], *, training: bool) -> Any:
        get = self._library.get
        where = "trainer.connectors.data_connector"
        is_stream = get(f"{where}:has_iterable_dataset")(loader)
        if is_stream or isinstance(loader.sampler, DistributedSampler):
            return loader
        shuffles = training or get(f"{where}:_is_dataloader_shuffled")(loader)
        ranks = {"num_replicas": size(), "rank": rank()}
        sampler = get(f"{where}:_get_distributed_sampler")(loader, shuffles, 0, **ranks)
        mode = get("trainer.states:RunningStage")["TRAINING" if training else "VALIDATING"]
        return get(f"{where}:_update_dataloader")(loader, sampler, mode=mode)


def are_dealt_out(loaders: list[Any]) -> bool:
    """Whether the samples of one of these loaders are dealt out to the ranks, so that all ranks read them."""
    if not Ranks.are_up():
        return False
    samplers = (getattr(one, "sampler", None) for one in loaders)
    return any(isinstance(one, DistributedSampler) for one in samplers)
