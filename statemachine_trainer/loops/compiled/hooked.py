"""What a captured step was read from, and that Dynamo does not look at again."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from operator import getitem
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import nn


class Watch:
    """The functions of classes whose code was read, which may be replaced, and hooks of modules.

    Functions of files, and those that an object has for itself, are among the guards.

    Args:
        read: The code that was read; empty if that is not known.
        bare: Dictionaries of hooks that were empty.
        model: The module whose step it is.
    """

    def __init__(
        self, read: Sequence[CodeType], bare: Sequence[Mapping[Any, Any]], model: nn.Module
    ) -> None:
        # Each once; those for hooks with keywords are filled with these.
        self._bare = [*{id(one): one for one in bare if isinstance(one, OrderedDict)}.values()]
        wanted = set(read)
        kinds = {kind for module in model.modules() for kind in type(module).__mro__}
        files = {getattr(module, "__file__", None): module for module in list(sys.modules.values())}
        # Those of torch stay as they are.
        kinds = {kind for kind in kinds if not kind.__module__.startswith("torch.")}
        kinds |= {kind for code in read if (kind := _class_of(code, files))}
        watched = [
            (vars(kind), name, value)
            for kind in kinds
            for name, value in vars(kind).items()
            if (code := _code_of(value)) is not None and (code in wanted or not wanted)
        ]
        self._places = [space for space, _, _ in watched]
        self._names = [name for _, name, _ in watched]
        self._values = [value for _, _, value in watched]

    def holds(self) -> bool:
        """Tell whether all classes have the functions that they had, and there is no new hook."""
        if any(self._bare):
            return False
        try:
            return [*map(getitem, self._places, self._names)] == self._values
        except KeyError:
            return False


def _code_of(value: Any) -> CodeType | None:
    for name in ("fget", "__func__"):  # of a property, a static or a class method
        value = getattr(value, name, None) or value
    return value.__code__ if isinstance(value, FunctionType) else None


def _class_of(code: CodeType, files: Mapping[str | None, ModuleType]) -> type | None:
    """Find the class that a method belongs to, by its name in its module."""
    path = code.co_qualname.split(".")[:-1]
    found: Any = files.get(code.co_filename)
    for name in path:
        found = getattr(found, name, None)
    ours = isinstance(found, type) and not found.__module__.startswith("torch.")
    return found if ours else None
