"""What a search finds, and what it knows of the values that it meets."""

from __future__ import annotations

import functools
import types
from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from statemachine_trainer.snapshot.generators import Generator

HOOKS: Final = tuple(name for name in vars(nn.Module()) if name.endswith("_hooks"))
OF_MODULES: Final = (*HOOKS, "_modules", "_parameters", "_buffers", "_compiled_call_impl")
"""Attributes of a module in which nothing is searched for: they are looked at in their own way."""

EMPTY: Final = frozenset({dict, list, tuple, OrderedDict, set, frozenset, deque})
"""Containers in which there is nothing to visit while they are empty."""

TENSORS: Final = frozenset({torch.Tensor, nn.Parameter, nn.Buffer})
"""Tensors of which only what was set on them is looked at."""

FACTORY: Final[Any] = defaultdict.__dict__["default_factory"]
"""What gives the function that makes the values of a `defaultdict`."""

KEYS: Final = frozenset({str, int, float, bool, bytes, type(None)})
"""Keys of dicts that may mean the same in another process."""


class Step(NamedTuple):
    """How an object is reached from its holder.

    Attributes:
        holder: Path of the holder.
        how: "attribute", "item", "closure", or "other" for what cannot be set again.
        key: Name of the attribute or the variable; key or index of the item.
    """

    holder: str
    how: str
    key: Any


RawStep = tuple[str, str, Any]
"""A `Step` on the way: one is made of it where a generator is found."""


class Way(NamedTuple):
    """What holds for everything below an object.

    Attributes:
        told: Whether what cannot be held is told. What lies in an object with a state of its own is
            the business of that object; what lies in a library's object is the library's.
        ordered: Whether paths are the same in every process.
        lent: Whether nothing is told because a library holds it. It writes down what is its own, and
            knows nothing of what lies in a function that a user gave it, such as the function of a
            `LambdaLR` or a hook.
        through: The types of the elements of containers through which it was reached.
    """

    told: bool = True
    ordered: bool = True
    lent: bool = False
    through: frozenset[type] = frozenset()


@dataclass(frozen=True)
class Place:
    """Where a generator lies: `step` is its first place, `also` are the others."""

    path: str
    generator: Generator
    step: Step
    also: list[Step] = field(default_factory=list)


@dataclass(frozen=True)
class Unheld:
    """Something that no checkpoint can hold: where it is, what it is, and what to do."""

    path: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path} is {self.what}: {self.remedy}"


def names_of_arguments(function: object) -> tuple[str, ...]:
    """Return the names of the parameters to which a partial gives its arguments, as far as code tells."""
    inner, skipped = function, 0
    if type(inner) is types.MethodType:
        inner, skipped = inner.__func__, 1
    if type(inner) is not types.FunctionType:
        return ()
    return inner.__code__.co_varnames[skipped : inner.__code__.co_argcount]


@functools.lru_cache(maxsize=4096)
def names_of_defaults(code: types.CodeType, count: int) -> tuple[str, ...]:
    """Return the names of the parameters to which a function gives its defaults, from the last.

    Code may have assigned more defaults than there are parameters; those are named by their place.
    """
    names = code.co_varnames[: code.co_argcount][::-1][:count]
    return names + tuple(f"__defaults__[{place}]" for place in range(count - len(names)))[::-1]


@functools.lru_cache(maxsize=4096)
def names_in(code: types.CodeType) -> tuple[str, ...]:
    """Return the names that code, and that of functions inside it, uses of globals and attributes."""
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= dict.fromkeys(names_in(constant))
    return tuple(names)
