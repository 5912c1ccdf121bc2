"""Checkpoints of what is trained: a frozen weight that is still the script's is left out, with a digest in its place.

Adapters over a large model train a small part of its weights. The rest is made by the script, each time it starts. So
a checkpoint need not hold it, as long as a resumed run gets the very same: the digest sees to that. A weight is left
out only if it needs no gradient *and* has the bits that it had when the fit began. One that is changed by hand, such as
that of a momentum encoder, or was trained and frozen later, is written.

The digest is the CRC-32 that checkpoints have for their files: it finds accidents, not intent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import nn

from statemachine_trainer.parallel.wrappers import PlainNames
from statemachine_trainer.snapshot.checkpoint_folder import crc32
from statemachine_trainer.snapshot.snapshot_errors import SnapshotMismatch
from statemachine_trainer.snapshot.tensor_file import plain_bytes

FROZEN: Final = "frozen"
"""Where a tree lists the digests of what was left out, by name."""

_SHOWN: Final = 5
_AVERAGES: Final = ("average", "raw")


def digests_of(model: nn.Module) -> dict[str, str]:
    """Return a digest of each plain tensor among the weights of a model, by name, the same on any device."""
    found = {}
    for name, one in PlainNames(model).state_dict().items():
        if (text := _digest(one)) is not None:
            found[name] = text
    return found


def without_frozen(tree: Mapping[str, Any], base: Mapping[str, str]) -> Mapping[str, Any]:
    """Return the state of a fit without the frozen weights that are still those of the script.

    Averages of them are left out too, where they are the same to the bit.

    Args:
        tree: The state; it is not changed.
        base: What `digests_of` returned as the fit began.
    """
    model = tree["context"]["model"]
    needs, weights = model["requires_grad"], model["weights"]
    frozen = {id(weights[name]) for name, one in needs.items() if not one and name in weights}
    callbacks = list(tree["callbacks"])
    # An average may stand in the model just now, and the weights themselves beside it.
    raw: Mapping[str, Any] = next(
        (one["raw"] for one in map(_average_in, callbacks) if one and one["raw"]), {}
    )
    own = {name: raw.get(name, one) for name, one in weights.items() if id(one) in frozen}
    digests: dict[int, str | None] = {}  # each tensor is read once

    def is_base(name: str, tensor: Any) -> bool:
        if id(tensor) not in digests:
            digests[id(tensor)] = _digest(tensor)
        return digests[id(tensor)] == base[name]

    left = {name: base[name] for name, one in own.items() if name in base and is_base(name, one)}
    if not left:
        return tree

    def without(saved: Any) -> Any:
        same = [name for name in left if saved is not None and name in saved]
        return _replaced(saved, {name: None for name in same if is_base(name, saved[name])})

    for place, one in enumerate(callbacks):
        if (state := _average_in(one)) is not None:
            shorter = {key: without(state[key]) for key in _AVERAGES}
            callbacks[place] = {**one, "state": {**state, **shorter}}
    context = {**tree["context"], "model": {**model, "weights": without(weights)}}
    return {**tree, "context": context, "callbacks": callbacks, FROZEN: left}


def with_frozen(tree: Any, model: nn.Module) -> Any:
    """Return a state that was read from a checkpoint with the weights that were left out: those of a model.

    Args:
        tree: The state; one in which nothing was left out is returned as it is.
        model: The model that the weights are taken from, before anything is loaded into it. They are not copied.

    Raises:
        SnapshotMismatch: It is another model than the one that the run was started with.
    """
    left = tree.get(FROZEN) if isinstance(tree, Mapping) else None
    if not left:
        return tree
    own = PlainNames(model).state_dict()
    others = [name for name, was in left.items() if name not in own or _digest(own[name]) != was]
    if others:
        more = ", ..." if len(others) > _SHOWN else ""
        raise SnapshotMismatch(
            f"The checkpoint holds what was trained alone, and {len(others)} of its {len(left)} frozen weights are "
            f"others in this {type(model).__name__}: {', '.join(others[:_SHOWN])}{more}. Build the model over the "
            "same weights as then: from the same file, or from the same seed. If they were trained since, load the "
            "checkpoint into a model that is made anew."
        )

    def whole(saved: Any) -> Any:
        gone = [name for name in left if saved is not None and saved.get(name, own) is None]
        return _replaced(saved, {name: own[name] for name in gone})

    state = tree["context"]["model"]
    callbacks = []
    for one in tree["callbacks"]:
        average = _average_in(one)
        filled = {} if average is None else {key: whole(average[key]) for key in _AVERAGES}
        callbacks.append(one if average is None else {**one, "state": {**average, **filled}})
    context = {**tree["context"], "model": {**state, "weights": whole(state["weights"])}}
    rest = {name: value for name, value in tree.items() if name != FROZEN}
    return {**rest, "context": context, "callbacks": callbacks}


def _average_in(callback: Any) -> Mapping[str, Any] | None:
    """Return the state of a callback that keeps an average of the weights; None of any other."""
    state = callback["state"]
    return state if isinstance(state, Mapping) and state.keys() >= {*_AVERAGES} else None


def _replaced(saved: Any, values: Mapping[str, Any]) -> Any:
    """Return a copy of weights by name with other values, in their order, and with the versions of modules."""
    if saved is None:
        return None
    made = type(saved)((name, values.get(name, one)) for name, one in saved.items())
    if hasattr(saved, "_metadata"):
        made._metadata = saved._metadata
    return made


def _digest(tensor: object) -> str | None:
    """Return kind, shape and checksum of a plain tensor; None of anything else."""
    if type(tensor) not in (torch.Tensor, nn.Parameter) or not isinstance(tensor, torch.Tensor):
        return None
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        return None
    return f"{tensor.dtype} {tuple(tensor.shape)} {crc32(plain_bytes(tensor)):08x}"
