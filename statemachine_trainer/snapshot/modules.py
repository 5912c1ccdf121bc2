"""The state of a module, to the bit: more than its `state_dict` tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from statemachine_trainer.snapshot.snapshot_errors import SnapshotMismatch


def module_state(module: nn.Module, *, grads: bool) -> dict[str, Any]:
    """Return all of a module that a run may change.

    Args:
        module: The module.
        grads: Whether gradients are to be kept: those that the run will read again are.

    Returns:
        `weights` (the module's `state_dict`), `buffers` (those that are not in it), `requires_grad`
        and `training` by name, and `grads`. Tensors are not copied.
    """
    weights = module.state_dict()  # as it is: it carries the versions of the modules
    return {
        "weights": weights,
        "buffers": {name: b for name, b in module.named_buffers() if name not in weights},
        "requires_grad": {name: p.requires_grad for name, p in module.named_parameters()},
        "training": {name: m.training for name, m in module.named_modules()},
        "grads": _grads(module) if grads else {},
    }


def load_module_state(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Bring a module into a saved state.

    Raises:
        SnapshotMismatch: The module has other parameters or buffers; the message lists them.
    """
    check_weights(module, state["weights"])
    module.load_state_dict(state["weights"])
    _load_buffers(module, state["weights"], state["buffers"])
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(state["requires_grad"].get(name, parameter.requires_grad))
        grad = state["grads"].get(name)
        parameter.grad = None if grad is None else _unpacked(grad).to(parameter.device, copy=True)
    for name, inner in module.named_modules():
        inner.training = state["training"].get(name, inner.training)


def check_weights(module: nn.Module, weights: Mapping[str, Any]) -> None:
    """Refuse weights of another model, and say what differs.

    Raises:
        SnapshotMismatch: Names, shapes or types differ.
    """
    own = dict(module.state_dict())
    differences = [f"{name!r} is only in the checkpoint" for name in weights if name not in own]
    differences += [f"{name!r} is only in the model" for name in own if name not in weights]
    for name in own.keys() & weights.keys():
        ours, theirs = own[name], weights[name]
        if not isinstance(ours, torch.Tensor) or not isinstance(theirs, torch.Tensor):
            continue
        if is_lazy(ours):  # it takes its shape from what is loaded
            continue
        if ours.shape != theirs.shape:
            was, now = tuple(theirs.shape), tuple(ours.shape)
            differences.append(f"{name!r} has shape {was}, here {now}")
        elif ours.dtype != theirs.dtype:
            differences.append(f"{name!r} is {theirs.dtype}, here {ours.dtype}")
    if differences:
        shown = "; ".join(sorted(differences)[:8]) + (" ..." if len(differences) > 8 else "")
        raise SnapshotMismatch(
            f"The checkpoint is of another model than this {type(module).__name__}: {shown}. "
            "Build the same model."
        )


def _grads(module: nn.Module) -> dict[str, Any]:
    return {name: _packed(p.grad) for name, p in module.named_parameters() if p.grad is not None}


def _packed(grad: torch.Tensor) -> Any:
    """Take the gradient of a sparse embedding apart, which no file holds as it is."""
    if grad.layout is not torch.sparse_coo:
        return grad
    return {
        "indices": grad._indices(),
        "values": grad._values(),
        "size": list(grad.shape),
        "coalesced": grad.is_coalesced(),
    }


def _unpacked(saved: Any) -> torch.Tensor:
    if isinstance(saved, torch.Tensor):
        return saved
    return torch.sparse_coo_tensor(
        saved["indices"],
        saved["values"],
        saved["size"],
        is_coalesced=saved["coalesced"],
        check_invariants=True,
    )


def _load_buffers(
    module: nn.Module, weights: Mapping[str, Any], saved: Mapping[str, torch.Tensor]
) -> None:
    """Load the buffers that are not in the `state_dict`; they may come, go and change shape."""
    own = {name: b for name, b in module.named_buffers() if name not in weights}
    with torch.no_grad():
        for name, value in saved.items():
            here = own.pop(name, None)
            if here is not None and here.shape == value.shape and here.dtype == value.dtype:
                here.copy_(value)
            else:
                _set_buffer(module, name, value)
    for name in own:
        _set_buffer(module, name, None)


def _set_buffer(module: nn.Module, name: str, value: torch.Tensor | None) -> None:
    owner, _, key = name.rpartition(".")
    place = next((one.device for one in module.parameters()), torch.device("cpu"))
    moved = None if value is None else value.to(place, copy=True)
    module.get_submodule(owner).register_buffer(key, moved, persistent=False)
