"""What a run keeps where no state holds it: the usual reason why it cannot be resumed.

The search that looks for generators (`snapshot.search`) visits all that a fit reaches. Here the plain
values on its way are compared: attributes, closure variables, class attributes and globals.
"""

from __future__ import annotations

import random
import types
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from statemachine_trainer.audit.reachable import (
    Roots,
    feeds_of,
    roots_besides_model_and_data,
    roots_of_feed,
)
from statemachine_trainer.audit.value_names import (
    IN_CALLBACK,
    has_state,
    name_in_objects,
    name_in_process,
)
from statemachine_trainer.snapshot.kinds import is_users, named_values
from statemachine_trainer.snapshot.search import Search
from statemachine_trainer.testing.trees import digest, shown

Value = tuple[str, str]
"""The digest of a value, and the value in a few words."""

Hidden = dict[tuple[str, str], Value]
"""What was found: (what it is, in words; what to do about it) to the value."""

_DEPTH = 3
_MOST_ELEMENTS = 1_000_000
_NOTHING = object()


def hidden_state(trainer: Any) -> Hidden:
    """Return what may be state and is in no snapshot: attributes, and variables of closures."""
    return _values(_roots(trainer), name_in_objects)


def hidden_in_callbacks(trainer: Any) -> Hidden:
    """Return the attributes of the callbacks that have no `state_dict`."""
    found = roots_besides_model_and_data(trainer.board, trainer.driver, trainer.context)
    roots = {
        name: thing
        for name, thing in found.items()
        if name.startswith("callback ") and not has_state(thing)
    }
    return {
        key: one for key, one in _values(roots, name_in_objects).items() if key[1] == IN_CALLBACK
    }


def hidden_in_process(trainer: Any) -> Hidden:
    """Return the globals and the class attributes that the code of the run may read."""
    return _values(_roots(trainer), name_in_process)


def hash_ordered(trainer: Any) -> list[str]:
    """Return what may have another order in another process: sets of strings, and code that makes sets."""
    found: dict[str, None] = {}

    def note(path: str, _holder: object, name: str, value: object) -> None:
        kind = type(value)
        if kind in (set, frozenset) and _is_hash_ordered(value):
            found[f"the set {path}.{name}"] = None
        elif kind is types.FunctionType:
            assert isinstance(value, types.FunctionType)
            if is_users(value.__module__) and _makes_sets(value.__code__):
                found[f"the code of {value.__qualname__}"] = None

    roots = _roots(trainer)
    for name, thing in roots.items():
        note(name, None, "", thing)
    Search(roots, notice=note)
    return [*found]


def compare_hidden(expected: Hidden, found: Hidden) -> list[str]:
    """Say what differs between two runs at the same boundary, and what to do."""
    told = []
    for key in expected.keys() & found.keys():
        (ours, was), (theirs, now) = expected[key], found[key]
        if ours != theirs:
            what, remedy = key
            told.append(f"{what} is {was} undisturbed and {now} resumed: {remedy}")
    told += [
        f"{what} is {value[1]} undisturbed and is not there resumed: {remedy}"
        for (what, remedy), value in expected.items()
        if (what, remedy) not in found
    ]
    return sorted(told)


def settled(hidden: Hidden, other: Hidden) -> Hidden:
    """Leave out what two undisturbed runs do not have in common, such as times and addresses."""
    return {key: one for key, one in hidden.items() if other.get(key, one)[0] == one[0]}


def changed(before: Hidden, after: Hidden) -> list[str]:
    """Say what changed in the course of a run."""
    return sorted(
        f"{what} changes in the course of a run, from {before[what, remedy][1]} to {value[1]}: {remedy}"
        for (what, remedy), value in after.items()
        if (what, remedy) in before and before[what, remedy][0] != value[0]
    )


def _roots(trainer: Any) -> Roots:
    context = trainer.context
    roots: Roots = {"model": context.model}
    for name, feed in feeds_of(context):
        roots |= roots_of_feed(name, feed)
    fit = trainer.driver
    return roots | roots_besides_model_and_data(trainer.board, fit, context)


def _values(roots: Roots, words: Any) -> Hidden:
    found: Hidden = {}

    def note(path: str, holder: object, name: str, value: object) -> None:
        told = words(roots, path, holder, name)
        if told is None:
            return
        content = _plain(value)
        if content is not _NOTHING:
            found[told] = digest(content), shown(value)

    Search(roots, notice=note)
    return found


def _is_hash_ordered(value: Any) -> bool:
    return len(value) > 1 and not all(type(one) in (int, bool) for one in value)


def _makes_sets(code: types.CodeType) -> bool:
    if {"set", "frozenset", "hash"} & {*code.co_names}:
        return True
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType) and _makes_sets(constant):
            return True
        if isinstance(constant, frozenset) and _is_hash_ordered(constant):
            return True
    return False


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
    inside = {} if known else named_values(value)
    return _plain(inside, depth - 1) if inside else _NOTHING
