"""Finds calls that draw random numbers from the operating system in the code of functions.

`np.random.default_rng()` without a seed in a `__getitem__` gives other numbers in each run, and
`os.urandom` does so everywhere. No object is left that could be saved, so only the code tells.
"""

from __future__ import annotations

import dis
import os
import random
import secrets
import sys
import types
import uuid
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import torch

_ALWAYS: Final[tuple[object, ...]] = (
    os.urandom, secrets.token_bytes, secrets.randbelow, secrets.randbits, secrets.choice,
)  # fmt: skip
_UNLESS_SEEDED: Final[tuple[object, ...]] = (
    np.random.default_rng, np.random.RandomState, np.random.SeedSequence, np.random.PCG64,
    np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64, random.Random,
    random.SystemRandom,
)  # fmt: skip
_SEEDS_AGAIN: Final[tuple[object, ...]] = (random.seed, np.random.seed, torch.seed)
_IDENTIFIERS: Final[tuple[object, ...]] = (uuid.uuid1, uuid.uuid4)
_AS_NUMBER: Final = frozenset({"int", "bytes", "fields", "node", "time_low"})
_NAMES: Final = frozenset(
    str(getattr(one, "__name__", ""))
    for one in (*_ALWAYS, *_UNLESS_SEEDED, *_SEEDS_AGAIN, *_IDENTIFIERS)
)
_BEGINS: Final = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FAST"})
_LEADS_ON: Final = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_BETWEEN: Final = frozenset({"PUSH_NULL", "PRECALL", "CACHE", "EXTENDED_ARG"})
_MAKES: Final = frozenset({"__init__", "__new__", "__post_init__", "__setstate__"})
"""Methods that make an object: what they draw is made before the fit, or held."""


class _Call(NamedTuple):
    """A call by a dotted name.

    Attributes:
        names: The parts of the name.
        seeded: Whether there is an argument other than None.
        then: The operation of the interpreter that takes the result.
        attribute: The attribute of the result that is read, or "".
    """

    names: tuple[str, ...]
    seeded: bool
    then: str
    attribute: str


def drawn_from_system(function: types.FunctionType) -> list[str]:
    """Return the calls in a function that draw from the operating system, such as "os.urandom".

    A generator that is kept in an attribute or handed on does not count: the search finds it there.
    """
    code = function.__code__
    if code.co_name in _MAKES:
        return []
    return [
        *dict.fromkeys(
            ".".join(call.names)
            for call in _calls(code)
            if _draws(call, _resolved(call.names, function.__globals__))
        )
    ]


def may_draw(code: types.CodeType) -> bool:
    """Whether it depends on what names mean at this moment if a function draws from the operating system."""
    return bool(_calls(code))


def _draws(call: _Call, called: object) -> bool:
    if any(called == one for one in _ALWAYS):
        return True
    if any(called is one for one in _IDENTIFIERS):
        return call.attribute in _AS_NUMBER
    if call.seeded:
        return False
    if any(called == one for one in _SEEDS_AGAIN):
        return True
    used_up = call.attribute != "" or call.then.startswith("STORE_FAST")
    return used_up and any(called == one for one in _UNLESS_SEEDED)


def _resolved(names: tuple[str, ...], space: Mapping[str, Any]) -> object:
    """Return what a dotted name means, where it leads through modules alone."""
    first = names[0]
    value = space.get(first, np if first == "np" else sys.modules.get(first))
    for name in names[1:]:
        if type(value) is not types.ModuleType:
            return None
        value = vars(value).get(name)
    # An object of a user may answer anything when it is compared.
    return value if callable(value) and type(value) in _KINDS else None


_KINDS: Final = frozenset(map(type, (*_ALWAYS, *_UNLESS_SEEDED, *_SEEDS_AGAIN, *_IDENTIFIERS)))


@lru_cache(maxsize=4096)
def _calls(code: types.CodeType) -> tuple[_Call, ...]:
    """Return the calls that may draw, also those of functions inside."""
    inside = [one for one in code.co_consts if isinstance(one, types.CodeType)]
    own = _calls_of(code) if _NAMES & {*code.co_names} else ()
    return (*own, *(call for one in inside for call in _calls(one)))


def _calls_of(code: types.CodeType) -> Iterator[_Call]:
    steps = [one for one in dis.get_instructions(code) if one.opname not in _BETWEEN]
    for place, step in enumerate(steps[:-1]):
        if step.opname not in _BEGINS | _LEADS_ON or step.argval not in _NAMES:
            continue
        names, begin = [str(step.argval)], place
        while steps[begin].opname in _LEADS_ON and begin:
            begin -= 1
            names.insert(0, str(steps[begin].argval))
        if steps[begin].opname not in _BEGINS:
            continue
        end, seeded = place + 1, True
        if steps[end].opname == "LOAD_CONST" and steps[end].argval is None:
            end, seeded = end + 1, False
        if end >= len(steps) - 1 or not steps[end].opname.startswith("CALL"):
            yield _Call((*names,), True, "", "")
            continue
        following = steps[end + 1]
        attribute = str(following.argval) if following.opname in _LEADS_ON else ""
        yield _Call((*names,), seeded and bool(steps[end].arg), following.opname, attribute)
