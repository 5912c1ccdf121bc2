"""What a run keeps where no state holds it: the usual reason why it cannot be resumed.

Looked at are the attributes of the loops, the callbacks, the model, the data and the schedulers, and
what functions that receive signals close over. Values that plain Python can compare are compared.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from statemachine_trainer.data.generators import parts_of
from statemachine_trainer.testing.trees import digest, shown

Value = tuple[str, str]
"""The digest of a value, and the value in a few words."""

Hidden = dict[tuple[str, str], Value]
"""What was found: (owner and attribute in words, what to do about it) to the value."""

_DEPTH = 3
_MOST_ELEMENTS = 1_000_000
_OF_LOOPS = {"_loops", "_declared", "_stands_for", "_parent", "_driver", "context"}
_OF_MODULES = frozenset(vars(nn.Module())) | {"log"}
_NOTHING = object()


def hidden_state(trainer: Any) -> Hidden:
    """Return the attributes that may be state and that no snapshot holds, by owner."""
    found: Hidden = {}
    for owner, name, value, remedy in _everything(trainer):
        content = _plain(value)
        if content is not _NOTHING:
            found[f"{name!r} of {owner}", remedy] = digest(content), shown(value)
    return found


def hidden_in_callbacks(trainer: Any) -> Hidden:
    """Return the attributes of the callbacks that have no `state_dict`."""
    found: Hidden = {}
    for owner, name, value, remedy in _of_callbacks(trainer, stateful=False):
        content = _plain(value)
        if content is not _NOTHING:
            found[f"{name!r} of {owner}", remedy] = digest(content), shown(value)
    return found


def compare_hidden(expected: Hidden, found: Hidden) -> list[str]:
    """Say which attributes differ between two runs at the same boundary, and what to do."""
    told = []
    for key in expected.keys() & found.keys():
        (ours, was), (theirs, now) = expected[key], found[key]
        if ours != theirs:
            what, remedy = key
            told.append(f"attribute {what} is {was} undisturbed and {now} resumed: {remedy}")
    told += [
        f"attribute {what} is {value[1]} undisturbed and is not there resumed: {remedy}"
        for (what, remedy), value in expected.items()
        if (what, remedy) not in found
    ]
    return sorted(told)


def _everything(trainer: Any) -> Iterator[tuple[str, str, Any, str]]:
    yield from _of_loops(trainer)
    yield from _of_callbacks(trainer, stateful=True)
    yield from _of_callbacks(trainer, stateful=False)
    yield from _of_functions(trainer)
    yield from _of_model(trainer)
    yield from _of_data(trainer)
    yield from _of_optimizers(trainer)


def _of_loops(trainer: Any) -> Iterator[tuple[str, str, Any, str]]:
    for path, loop in trainer.loop.walk(trainer.driver.name):
        ignored = {*loop._fields, *_OF_LOOPS}
        remedy = "declare it as an annotated field of the class, `name: type = default`"
        for name, value in vars(loop).items():
            if name not in ignored:
                yield f"the loop {path} ({type(loop).__name__})", name, value, remedy


def _of_callbacks(trainer: Any, *, stateful: bool) -> Iterator[tuple[str, str, Any, str]]:
    remedy = "give the callback `state_dict` and `load_state_dict`"
    if stateful:
        remedy = "its `state_dict` leaves it out"
    for owner in _owners(trainer):
        has_state = hasattr(owner, "state_dict") and hasattr(owner, "load_state_dict")
        if has_state is stateful:
            for name, value in _attributes(owner).items():
                yield f"the callback {type(owner).__name__}", name, value, remedy


def _owners(trainer: Any) -> list[Any]:
    """Objects with receivers, each once, without the model and what belongs to this package."""
    found: dict[int, Any] = {}
    for one in trainer.board.subscriptions:
        owner = getattr(one.receiver, "__self__", None)
        ours = type(owner).__module__.startswith("statemachine_trainer.")
        if owner is not None and not isinstance(owner, nn.Module) and not ours:
            found.setdefault(id(owner), owner)
    return list(found.values())


def _of_functions(trainer: Any) -> Iterator[tuple[str, str, Any, str]]:
    remedy = "keep it in a callback object with `state_dict` and `load_state_dict`"
    for one in trainer.board.subscriptions:
        function = one.receiver
        cells = getattr(function, "__closure__", None) or ()
        names = getattr(getattr(function, "__code__", None), "co_freevars", ())
        for name, cell in zip(names, cells, strict=True):
            try:
                yield f"the function {function.__qualname__}", name, cell.cell_contents, remedy
            except ValueError:  # nothing in it yet
                continue


def _of_model(trainer: Any) -> Iterator[tuple[str, str, Any, str]]:
    remedy = "make it a buffer, or give the module `get_extra_state` and `set_extra_state`"
    for path, module in trainer.context.model.named_modules():
        owner = f"the module {path or 'at the top of the model'} ({type(module).__name__})"
        for name, value in vars(module).items():
            if name not in _OF_MODULES:
                yield owner, name, value, remedy


def _of_data(trainer: Any) -> Iterator[tuple[str, str, Any, str]]:
    context = trainer.context
    remedy = "give it `state_dict` and `load_state_dict`, or let it follow from the index and epoch"
    feeds = [] if context.train is None else [("train", context.train)]
    for called, feed in [*feeds, *context.validation]:
        for place, part in parts_of(feed.loader).items():
            if type(part).__module__.startswith("torch."):
                continue
            for name, value in _attributes(part).items():
                yield f"the {place} of {called!r} ({type(part).__name__})", name, value, remedy


def _of_optimizers(trainer: Any) -> Iterator[tuple[str, str, Any, str]]:
    remedy = "its `state_dict` leaves it out"
    for slot in trainer.context.slots:
        for part in (slot.optimizer, *(one.scheduler for one in slot.schedulers)):
            if not type(part).__module__.startswith("torch."):
                for name, value in _attributes(part).items():
                    if name not in ("state", "param_groups", "defaults"):
                        yield type(part).__name__, name, value, remedy


def _attributes(owner: object) -> Mapping[str, Any]:
    return getattr(owner, "__dict__", {})


def _plain(value: object, depth: int = _DEPTH) -> Any:
    """Return a value as a tree that can be compared; `_NOTHING` where that makes no sense."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | slice):
        return value
    if isinstance(value, torch.Tensor):
        return value if value.numel() <= _MOST_ELEMENTS and value.grad_fn is None else _NOTHING
    if isinstance(value, np.ndarray | np.generic):
        return value if value.size <= _MOST_ELEMENTS and value.dtype.kind in "biufc" else _NOTHING
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, random.Random):
        return repr(value.getstate())
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if depth == 0 or callable(value) or isinstance(value, type):
        return _NOTHING
    if isinstance(value, Mapping):
        pairs = ((repr(key), _plain(one, depth - 1)) for key, one in [*value.items()])
        return {key: one for key, one in pairs if one is not _NOTHING}
    if isinstance(value, list | tuple | deque | set | frozenset):
        items = [*value] if not isinstance(value, set | frozenset) else sorted(value, key=repr)
        inside = [_plain(one, depth - 1) for one in items]
        return [len(inside), *(one for one in inside if one is not _NOTHING)]
    return _object(value, depth)


def _object(value: object, depth: int) -> Any:
    """An object that shows itself (`count(3)`), or one of a user's own with plain attributes."""
    if type(value).__module__ in ("itertools", "collections", "datetime", "fractions", "decimal"):
        return repr(value)
    known = type(value).__module__.partition(".")[0] in ("torch", "statemachine_trainer")
    if known or not _attributes(value):
        return _NOTHING
    return _plain(dict(_attributes(value)), depth - 1)
