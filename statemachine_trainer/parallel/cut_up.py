"""Tensors and modules that are cut up among the ranks, by `fully_shard` or by tensor parallelism."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from typing import Any, cast

import torch
from torch import nn


def is_fully_sharded(module: nn.Module) -> bool:
    """Return whether `fully_shard` was called on a module."""
    return _is_fully_sharded(cast(Hashable, type(module)))


@lru_cache(maxsize=1024)
def _is_fully_sharded(kind: type) -> bool:
    # By its name: most runs do not import FSDP.
    return any(
        base.__name__ == "FSDPModule" and base.__module__.startswith("torch.distributed.fsdp")
        for base in kind.__mro__
    )


def is_cut_up(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is a `DTensor`, of which each rank has a part."""
    return type(tensor).__name__ == "DTensor" or hasattr(tensor, "placements")


def settle(model: nn.Module) -> None:
    """Free the whole parameters that a forward pass of `fully_shard` may have left in a model."""
    if "torch.distributed.fsdp" not in sys.modules:
        return  # whoever calls `fully_shard` imports it
    for one in model.modules():
        if is_fully_sharded(one):
            one.reshard()  # type: ignore[operator]


def exchange(tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Give a tensor another value; return the one that it had.

    Memory is exchanged, not copied: a graph that waits for its backward pass stays whole. That of a
    tensor that is cut up stays, for `fully_shard` reads it by another name.
    """
    if is_cut_up(tensor):
        before = tensor.detach().clone()
        tensor.detach().copy_(value)
        return before
    before = tensor.data
    tensor.data = value.to(tensor.device)
    return before


def total_norm(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the norm of all tensors together, also of those that are cut up over several meshes. A collective then."""
    groups: dict[int | None, list[Any]] = {}
    for one in tensors:
        groups.setdefault(id(cast(Any, one).device_mesh) if is_cut_up(one) else None, []).append(
            one
        )
    norms = [torch.nn.utils.get_total_norm(group) for group in groups.values()]
    if len(norms) == 1:
        return norms[0]
    whole = [cast(Any, one).full_tensor() if is_cut_up(one) else one for one in norms]
    norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(whole))
    return norm


def clip_over_meshes(parameters: Iterable[nn.Parameter], most: float) -> torch.Tensor:
    """Clip gradients that are cut up over several meshes, as `clip_grad_norm_` does; return their norm before."""
    gradients = [one.grad for one in parameters if one.grad is not None]
    norm = total_norm(gradients)
    by = torch.clamp(most / (norm + 1e-6), max=1.0)
    for one in gradients:
        local_of(one).mul_(by)
    return norm


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this rank has of a tensor: the tensor itself unless it is cut up."""
    part: Any = tensor
    found: torch.Tensor = part.to_local() if is_cut_up(tensor) else tensor
    return found
