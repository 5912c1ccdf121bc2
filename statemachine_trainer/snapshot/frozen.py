"""Checkpoints of what is trained: a frozen weight that is still the script's is left out, with a digest in its place.

Adapters over a large model train a small part of its weights. The rest is made by the script, each time it starts. So
a checkpoint need not hold it, as long as a resumed run gets the very same: the digest sees to that. A weight is left
out only if it needs no gradient *and* has the bits that it had when the fit began. One that is changed by hand, such as
that of a momentum encoder, or was trained and frozen later, is written.

The digest is the CRC-32 that checkpoints have for their files: it finds accidents, not intent. It is that of whole
weights, also where they are cut up among ranks, so that another number of ranks can go on. Each rank looks only at its
own parts from then on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import nn

from statemachine_trainer.parallel.cut_up import is_cut_up, local_of
from statemachine_trainer.parallel.ranks import Ranks
from statemachine_trainer.parallel.wrappers import PlainNames
from statemachine_trainer.snapshot.checkpoint_folder import crc32
from statemachine_trainer.snapshot.snapshot_errors import SnapshotMismatch
from statemachine_trainer.snapshot.tensor_file import plain_bytes

FROZEN: Final = "frozen"
"""Where a tree lists the digests of what was left out, by name."""

_SHOWN: Final = 5
_AVERAGES: Final = ("average", "raw")


@dataclass(frozen=True)
class Base:
    """The weights of a model as the script has made them.

    Attributes:
        digests: A digest of each plain tensor among them, by name, the same on any device.
        parts: A digest of what this rank has of each, the same as above unless they are cut up among ranks.
        cut_up: Whether some are.
    """

    digests: Mapping[str, str]
    parts: Mapping[str, str]
    cut_up: bool

    @classmethod
    def of(cls, model: nn.Module) -> Base:
        """Look at the weights of a model. A collective where they are cut up: each is put together once."""
        weights = PlainNames(model).state_dict()
        found = {name: _digest(one) for name, one in weights.items()}
        digests = {name: text for name, text in found.items() if text is not None}
        cut = {name for name in digests if is_cut_up(weights[name])}
        parts = {name: _digest(local_of(weights[name].detach())) or "" for name in cut}
        return cls(digests, {**digests, **parts}, bool(cut))


def without_frozen(tree: Mapping[str, Any], base: Base) -> Mapping[str, Any]:
    """Return the state of a fit without the frozen weights that are still those of the script.

    Averages of them are left out too, where they are the same to the bit. A collective where weights are cut up
    among ranks: what has changed at one of them is written by all.

    Args:
        tree: The state; it is not changed.
        base: The weights as the fit began.
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
    averages = {place: found for place, one in enumerate(callbacks) if (found := _average_in(one))}
    held: dict[Any, Mapping[str, Any]] = {"own": own, "weights": weights}
    held |= {(place, key): one[key] or {} for place, one in averages.items() for key in _AVERAGES}
    digests: dict[int, str | None] = {}  # each tensor is read once

    def is_base(name: str, tensor: Any) -> bool:
        if id(tensor) not in digests:
            digests[id(tensor)] = _digest(
                local_of(tensor.detach()) if is_cut_up(tensor) else tensor
            )
        return digests[id(tensor)] == base.parts[name]

    known = [name for name in own if name in base.digests]
    looked_at = [(at, name) for at, one in held.items() for name in known if name in one]
    same = _at_all([is_base(name, held[at][name]) for at, name in looked_at], base)
    unchanged = {one for one, as_before in zip(looked_at, same, strict=True) if as_before}
    left = {name: base.digests[name] for name in known if ("own", name) in unchanged}
    if not left:
        return tree

    def without(at: Any, saved: Any) -> Any:
        return _replaced(saved, {name: None for name in left if (at, name) in unchanged})

    for place, state in averages.items():
        shorter = {key: without((place, key), state[key]) for key in _AVERAGES}
        callbacks[place] = {**callbacks[place], "state": {**state, **shorter}}
    context = {**tree["context"], "model": {**model, "weights": without("weights", weights)}}
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


def _at_all(answers: list[bool], base: Base) -> list[bool]:
    """Return which answers are yes at all ranks, where weights are cut up among them."""
    ranks = Ranks.here() if base.cut_up else None
    if ranks is None or not answers:
        return answers
    return [not found for found in ranks.largest([not one for one in answers])]


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
    """Return kind, shape and checksum of a plain tensor; None of anything else.

    One that is cut up is put together, which is a collective.
    """
    if isinstance(tensor, torch.Tensor) and is_cut_up(tensor):
        tensor = cast(Any, tensor).detach().full_tensor()
    if type(tensor) not in (torch.Tensor, nn.Parameter) or not isinstance(tensor, torch.Tensor):
        return None
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        return None
    return f"{tensor.dtype} {tuple(tensor.shape)} {crc32(plain_bytes(tensor)):08x}"
