"""Wraps a model for several ranks as the documentation of torch recommends.

Nothing in the trainer needs these two functions. They are what most scripts write around a model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from statemachine_trainer.parallel.parallel_errors import UnsupportedWrapper


def ddp(model: nn.Module, **settings: Any) -> nn.Module:
    """Return a model in `DistributedDataParallel`, on the device of this rank.

    Under `torchrun` the process group is initialised unless it is, with gloo for the CPU and with
    the backend of the accelerator beside it. With one process the model comes back as it is, so that
    a script runs with and without `torchrun`. End the script with
    `torch.distributed.destroy_process_group()`.

    Args:
        model: A module; it is moved to the device.
        settings: More for `DistributedDataParallel`, such as `find_unused_parameters=True`.

    Raises:
        UnsupportedWrapper: It is no module.

    Example:
        >>> from torch import nn
        >>> ddp(nn.Linear(2, 1))  # one process
        Linear(in_features=2, out_features=1, bias=True)
    """
    _check_module("ddp", model)
    device = _device_of_rank()
    model = model.to(device)
    if not _has_ranks():
        return model
    if device.type != "cpu":
        settings.setdefault("device_ids", [device])
    return DistributedDataParallel(model, **settings)


def fsdp(model: nn.Module, parts: Iterable[nn.Module] | None = None, **settings: Any) -> nn.Module:
    """Cut up the parameters of a model among the ranks with `fully_shard` (FSDP2); return the model.

    Each part gathers its own parameters when it runs, so the largest part decides how much memory
    is needed. The process group is initialised as by `ddp`; with one process the model comes back as
    it is. Make optimizers afterwards: parameters are other objects then.

    Args:
        model: A module; it is moved to the device.
        parts: Modules that are cut up by themselves, such as the blocks of a transformer. The
            members of each `nn.ModuleList` and `nn.Sequential` unless given.
        settings: More for each `fully_shard`, such as `mp_policy=` or `mesh=`.

    Raises:
        UnsupportedWrapper: It is no module, or a part is not in it.
    """
    _check_module("fsdp", model)
    device = _device_of_rank()
    model = model.to(device)
    if not _has_ranks():
        return model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    inside = [*model.modules()]
    chosen = [*_blocks(model)] if parts is None else [*parts]
    strange = [type(one).__name__ for one in chosen if not any(one is other for other in inside)]
    if strange:
        raise UnsupportedWrapper(
            f"fsdp(parts=...) names a {strange[0]} that is no module of the {type(model).__name__}. Give modules "
            "of the model itself: parts=model.blocks."
        )
    settings.setdefault("mesh", init_device_mesh(device.type, (dist.get_world_size(),)))
    # From the inside out, as `fully_shard` wants it: `modules` goes the other way.
    for one in reversed(inside):
        if one is model or any(one is other for other in chosen):
            fully_shard(one, **settings)
    return model


def _check_module(function: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise UnsupportedWrapper(
            f"parallel.{function} wraps a torch.nn.Module, and this is a {type(model).__name__}."
        )


def _blocks(model: nn.Module) -> Iterable[nn.Module]:
    """Yield the members of lists and sequences of modules that have parameters."""
    for one in model.modules():
        if isinstance(one, nn.ModuleList | nn.Sequential):
            yield from (part for part in one if any(True for _ in part.parameters()))


def _device_of_rank() -> torch.device:
    """Return the device of this rank: the accelerator of its number on this machine, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", "0"))
    torch.accelerator.set_device_index(number)
    return torch.device(accelerator.type, number)


def _has_ranks() -> bool:
    """Return whether there are several ranks; initialise their process group if `torchrun` has started them."""
    if dist.is_initialized():
        return dist.get_world_size() > 1
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return False
    dist.init_process_group()
    return True
