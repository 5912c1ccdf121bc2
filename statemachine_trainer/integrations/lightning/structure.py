"""What callbacks change in the structure of model and optimizers, made again before a state is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune
from torch.optim import Optimizer

from statemachine_trainer.loops.slots import OptimizerSlot


def parameter_names(module: nn.Module, slots: list[OptimizerSlot]) -> list[list[list[str]]]:
    """Return the names of the parameters in each group of each optimizer; "" for one of nobody's."""
    names = {id(p): name for name, p in module.named_parameters()}
    return [
        [[names.get(id(p), "") for p in group["params"]] for group in slot.optimizer.param_groups]
        for slot in slots
    ]


def prune_again(module: nn.Module, weights: Mapping[str, Any]) -> None:
    """Prune the parameters that were pruned when the weights were saved; the masks come with the state.

    Pruning by torch puts `weight_orig` and `weight_mask` in the place of `weight`.
    """
    own = set(module.state_dict())
    for mask in [name for name in weights if name.endswith("_mask") and name not in own]:
        name = mask.removesuffix("_mask")
        if f"{name}_orig" in weights and name in own:
            owner, _, parameter = name.rpartition(".")
            like = weights[mask]
            prune.custom_from_mask(module.get_submodule(owner), parameter, torch.ones_like(like))


def group_again(
    module: nn.Module, slots: list[OptimizerSlot], saved: list[list[list[str]]]
) -> None:
    """Give optimizers the groups of parameters that they had, as unfreezing callbacks add them.

    Nothing is done where a name is not known: loading the state then says what differs.
    """
    parameters = dict(module.named_parameters())
    now = parameter_names(module, slots)
    for slot, here, there in zip(slots, now, saved, strict=False):
        if here == there or any(name not in parameters for group in there for name in group):
            continue
        _regroup(slot.optimizer, [[parameters[name] for name in group] for group in there])


def _regroup(optimizer: Optimizer, groups: list[list[nn.Parameter]]) -> None:
    kept = optimizer.param_groups[: len(groups)]
    for group, parameters in zip(kept, groups, strict=False):
        group["params"] = parameters
    optimizer.param_groups[:] = kept
    for parameters in groups[len(kept) :]:
        optimizer.add_param_group({"params": parameters})
