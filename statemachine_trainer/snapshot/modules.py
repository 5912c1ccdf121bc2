"""The state of a module, to the bit: more than its `state_dict` tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from statemachine_trainer.parallel.cut_up import local_of
from statemachine_trainer.parallel.wrappers import PlainNames
from statemachine_trainer.snapshot.copying import copy_large, has_large
from statemachine_trainer.snapshot.snapshot_errors import SnapshotMismatch
from statemachine_trainer.snapshot.tensor_file import plain_bytes

_LOAD_WHAT_THEY_ARE: Final = (_NormBase,)
"""Modules of torch that look at versions as they load, and take no other shapes."""

_LOADING: Final = {"load_state_dict", "_load_from_state_dict"}
"""Methods that load; an object may have others than its class."""

_EXTRA_STATE: Final = "_extra_state"
"""The last part of the name of what `get_extra_state` returns."""


def module_state(module: nn.Module | PlainNames, *, grads: bool) -> dict[str, Any]:
    """Return all of a module that a run may change.

    Args:
        module: The module, or its names, if they are known already.
        grads: Whether gradients are to be kept: those that the run will read again are.

    Returns:
        `weights` (the module's `state_dict`), `buffers` (those that are not in it), `requires_grad`
        and `training` by name, and `grads`; and `left_out`, if a `state_dict` of the user's own
        leaves out parameters that are trained. Tensors are not copied. Names are those of the
        module without wrappers in it, such as compiled parts.
    """
    names = module if isinstance(module, PlainNames) else PlainNames(module)
    weights = names.state_dict()  # no dict of ours: it carries the versions of the modules
    _drop_lazy(weights)
    left_out = _left_out(names, weights)
    _write_once(weights)
    return {
        "weights": weights,
        "buffers": {n: b for n, b in names.buffers() if n not in weights and not is_lazy(b)},
        "requires_grad": {name: p.requires_grad for name, p in names.parameters()},
        "training": {name: m.training for name, m in names.modules()},
        "grads": _grads(names) if grads else {},
        **({"left_out": left_out} if left_out else {}),
    }


def load_module_state(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Bring a module into a saved state.

    Raises:
        SnapshotMismatch: The module has other parameters or buffers; the message lists them.
    """
    names = PlainNames(module)
    flags, training = (names.known(state[name]) for name in ("requires_grad", "training"))
    grads = names.known(state["grads"])
    load_module_weights(module, state["weights"])
    _load_buffers(module, names.known(state["weights"]), names.known(state["buffers"]))
    left_out = names.known(state.get("left_out", {}))
    for name, parameter in names.parameters():
        if name in left_out:
            _load_left_out(module, name, parameter, left_out[name])
        needs = flags.get(name, parameter.requires_grad)
        if parameter.requires_grad != needs:
            parameter.requires_grad_(needs)
        if not is_lazy(parameter):
            grad = grads.get(name)
            moved = None if grad is None else _unpacked(grad).to(parameter.device, copy=True)
            parameter.grad = moved
    for name, inner in names.modules():
        inner.training = training.get(name, inner.training)


def load_module_weights(module: nn.Module, weights: Mapping[str, Any]) -> None:
    """Load weights as the module's own `load_state_dict` does, and see that nothing was rounded.

    Modules that load in a way of their own, as the observers of quantization do, may take other
    shapes, and other names, than they have.

    Raises:
        SnapshotMismatch: They are of another model; the message lists what differs. Then the model
            is unchanged, unless a module that loads in a way of its own is at fault.
    """
    names = PlainNames(module)
    saved = names.known(weights)
    own = names.state_dict()
    lenient = _that_load_otherwise(names)
    differences = [
        text for name, text in _differences(own, saved) if not _lies_within(name, lenient)
    ]
    differences += _saved_apart(own, saved, lenient)
    if differences:
        raise _of_another_model(module, differences)
    _unfold_buffers(module)
    try:
        names.load_state_dict(weights, _copied_before(module, saved))
    except RuntimeError as error:
        raise _of_another_model(
            module, [text for _, text in _differences(own, saved)] or [str(error)]
        ) from error
    _finish_lazy(module)
    changed = [text for _, text in _differences(names.state_dict(), saved, shared_only=True)]
    if changed:
        raise _of_another_model(module, changed)


def _copied_before(module: nn.Module, saved: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Copy large weights into a module where loading them does nothing else, and takes longer.

    Returns:
        Those weights of the module: torch sees that there is nothing to copy from a tensor to itself.
    """
    return copy_large(copied_when_loaded(module), saved) if has_large(saved) else {}


def copied_when_loaded(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights into whose memory `load_module_weights` copies, so that it keeps nothing it was given.

    Those are all, or none: a module that loads in a way of its own sees what is meant for others, too.
    """
    names = PlainNames(module)
    if (
        torch.__future__.get_swap_module_params_on_conversion()
        or _that_load_otherwise(names)
        or any(vars(one).keys() & _LOADING for one in module.modules())
        or not all(map(_is_plain, (*module.parameters(), *module.buffers())))
    ):
        return {}
    return {
        name: one
        for name, one in names.state_dict().items()
        if _is_plain(one) and not name.endswith(_EXTRA_STATE)
    }


def _is_plain(one: object) -> bool:
    return _lies_in_memory(one) and one.device.type in ("cpu", "cuda")  # type: ignore[attr-defined]


def _unfold_buffers(module: nn.Module) -> None:
    """Give each element of an expanded buffer a place of its own: torch loads into no other."""
    for one in module.modules():
        for name, buffer in one._buffers.items():
            if (
                buffer is not None
                and not is_lazy(buffer)
                and buffer.layout is torch.strided
                and any(
                    size > 1 and step == 0
                    for size, step in zip(buffer.shape, buffer.stride(), strict=True)
                )
            ):
                one._buffers[name] = buffer.clone(memory_format=torch.contiguous_format)


def _drop_lazy(weights: dict[str, Any]) -> None:
    """Leave out what gets its shape, and its numbers, with the first batch."""
    for name in [name for name, one in weights.items() if is_lazy(one)]:
        del weights[name]


def _write_once(weights: dict[str, Any]) -> None:
    """Put one tensor under all the names of a tied one, so that a file holds it once."""
    for first, *others in tied_names(weights):
        for name in others:
            weights[name] = weights[first]


def tied_names(weights: Mapping[str, Any]) -> list[list[str]]:
    """Return the names under which one and the same tensor stands, by their order, for each tensor with several."""
    known: dict[tuple[Any, ...], list[str]] = {}
    for name, one in weights.items():
        if not isinstance(one, torch.Tensor) or is_lazy(one) or one.is_nested:
            continue
        if one.layout is torch.strided and one.numel():
            here = local_of(one)
            if here.numel() and (address := here.data_ptr()):  # else it has no memory of its own
                layout = here.dtype, tuple(here.shape), here.stride()
                # The same memory, read as conjugated or negative numbers, holds other values.
                reading = here.is_conj(), here.is_neg()
                known.setdefault((here.device, address, layout, reading), []).append(name)
    return [names for names in known.values() if len(names) > 1]


def _saved_apart(
    own: Mapping[str, Any], saved: Mapping[str, Any], lenient: Sequence[str]
) -> Iterator[str]:
    """Yield weights that are tied in the model and were not in what is saved, where their values differ."""
    for first, *others in tied_names(own):
        for name in others:
            one, other = saved.get(first), saved.get(name)
            if one is other or _lies_within(name, lenient) or _lies_within(first, lenient):
                continue
            if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)):
                continue
            plain = all(each.layout is torch.strided and not each.is_meta for each in (one, other))
            if plain and one.shape == other.shape and not _same_bits(one, other):
                yield f"{first!r} and {name!r} are one tensor in the model, and two with other values in the checkpoint"


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    one, other = local_of(one), local_of(other)
    return torch.equal(one, other) or plain_bytes(one) == plain_bytes(other)


def _differences(
    own: Mapping[str, Any], saved: Mapping[str, Any], *, shared_only: bool = False
) -> Iterator[tuple[str, str]]:
    """Yield the names whose tensors differ in shape or type, or are missing on a side, and how."""
    for name in sorted(own.keys() | saved.keys()):
        if name not in own or name not in saved:
            if not shared_only and not (name in own and is_lazy(own[name])):
                yield name, f"{name!r} is only in the {'model' if name in own else 'checkpoint'}"
            continue
        ours, theirs = own[name], saved[name]
        if not isinstance(ours, torch.Tensor) or not isinstance(theirs, torch.Tensor):
            continue
        if is_lazy(ours) or is_lazy(theirs):  # a lazy one takes its shape from what is loaded
            continue
        if ours.shape != theirs.shape:
            was, now = tuple(theirs.shape), tuple(ours.shape)
            yield name, f"{name!r} has shape {was}, here {now}"
        elif ours.dtype != theirs.dtype:
            yield name, f"{name!r} is {theirs.dtype}, here {ours.dtype}"


def _finish_lazy(module: nn.Module) -> None:
    """Make lazy layers that got their shape with the weights what a first batch makes of them.

    Torch does so with their next batch, and leaves some of their sizes at 0.
    """
    for one in module.modules():
        if (
            isinstance(one, LazyModuleMixin)
            and _of_torch(one)
            and not one.has_uninitialized_params()
        ):
            layer: Any = one
            sized = layer.running_mean if layer.weight is None else layer.weight
            if sized is None:
                continue
            shape = sized.shape
            if hasattr(layer, "num_features"):
                layer.num_features = shape[0]
            elif hasattr(layer, "in_features"):
                layer.in_features = shape[1]
            elif hasattr(layer, "in_channels"):
                layer.in_channels = shape[0] if layer.transposed else shape[1] * layer.groups
            layer._infer_parameters(layer, (torch.empty(1, shape[-1]),))


def _of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def _that_load_otherwise(names: PlainNames) -> list[str]:
    """Return the modules that load in a way of their own, with all that is in them."""
    plain = nn.Module._load_from_state_dict, nn.Module.load_state_dict
    return [
        name
        for name, one in names.modules(wrappers=False)
        if (
            (type(one)._load_from_state_dict, type(one).load_state_dict) != plain
            and not isinstance(one, _LOAD_WHAT_THEY_ARE)
        )
        or one._load_state_dict_pre_hooks
    ]


def _lies_within(name: str, modules: Sequence[str]) -> bool:
    return any(not one or name == one or name.startswith(f"{one}.") for one in modules)


def _of_another_model(module: nn.Module, differences: Sequence[str]) -> SnapshotMismatch:
    shown = "; ".join(differences[:8]) + (" ..." if len(differences) > 8 else "")
    return SnapshotMismatch(
        f"The checkpoint is of another model than this {type(module).__name__}: {shown}. "
        "Build the same model. What the run itself changed in it, such as layers that were added or pruned, "
        "has to be changed before the run goes on."
    )


def _left_out(names: PlainNames, weights: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the parameters that are trained, and are in the `state_dict` under no name."""
    missing = {
        name: one
        for name, one in names.parameters()
        if name not in weights and one.requires_grad and not is_lazy(one)
    }
    if not missing:
        return {}
    held = {one.data_ptr() for one in weights.values() if _lies_in_memory(one)}
    return {
        name: one.detach()
        for name, one in missing.items()
        if _lies_in_memory(one) and one.data_ptr() not in held
    }


def _lies_in_memory(one: object) -> bool:
    return type(one) in (torch.Tensor, nn.Parameter, nn.Buffer) and one.layout is torch.strided  # type: ignore[attr-defined]


def _load_left_out(
    module: nn.Module, name: str, parameter: nn.Parameter, saved: torch.Tensor
) -> None:
    if parameter.shape != saved.shape or parameter.dtype != saved.dtype:
        was, now = tuple(saved.shape), tuple(parameter.shape)
        raise _of_another_model(module, [f"{name!r} has shape {was}, here {now}"])
    with torch.no_grad():
        parameter.copy_(saved)


def _grads(names: PlainNames) -> dict[str, Any]:
    return {name: _packed(p.grad) for name, p in names.parameters() if p.grad is not None}


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
    names = PlainNames(module)
    own = {n: b for n, b in names.buffers() if n not in weights and not is_lazy(b)}
    owners = dict(names.modules(wrappers=False))
    place = next((one.device for one in module.parameters()), torch.device("cpu"))

    def put(name: str, value: torch.Tensor | None) -> None:
        owner, _, key = name.rpartition(".")
        moved = None if value is None else value.to(place, copy=True)
        owners[owner].register_buffer(key, moved, persistent=False)

    with torch.no_grad():
        for name, value in saved.items():
            here = own.pop(name, None)
            if here is not None and here.shape == value.shape and here.dtype == value.dtype:
                here.copy_(value)
            else:
                put(name, value)
    for name in own:
        put(name, None)
