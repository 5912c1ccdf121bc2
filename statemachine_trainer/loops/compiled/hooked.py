"""What a captured step was read from, and that Dynamo does not look at again; hooks of all kinds."""

from __future__ import annotations

import contextlib
import dis
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from operator import getitem
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge


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
        kinds |= {kind for code in read if (kind := _class_of(code, files))}
        watched = [
            (vars(kind), name, value)
            for kind in kinds
            for name, value in vars(kind).items()
            if (code := _code_of(value)) is not None
            # Of torch only what libraries that change models put something else in the place of.
            and (name == "forward" or not kind.__module__.startswith("torch."))
            and (code in wanted or not wanted)
        ]
        self._places = [space for space, _, _ in watched]
        self._names = [name for _, name, _ in watched]
        self._values = [value for _, _, value in watched]
        # A method that a class had from its base; all of those of tensors are from a base.
        self._spaces = [*map(vars, kinds), vars(Tensor)]
        self._sizes = [*map(len, self._spaces)]

    def holds(self) -> bool:
        """Tell whether all classes have the functions that they had, and there is no new hook."""
        if any(self._bare) or [*map(len, self._spaces)] != self._sizes:
            return False
        try:
            return [*map(getitem, self._places, self._names)] == self._values
        except KeyError:
            return False


def catching(read: Sequence[CodeType], model: nn.Module) -> CodeType | None:
    """Return code of others than torch that catches exceptions; None if there is none.

    Dynamo reads what comes after an exception. That something was missing, a key or an attribute,
    it does not look at again.

    Args:
        read: The code that was read; empty if that is not known.
        model: The module whose step it is.
    """
    read = read or _named_by_steps(model)
    return next((code for code in read if code is _SUPPRESSING or _catches(code)), None)


def _named_by_steps(model: nn.Module) -> list[CodeType]:
    """Return the methods of users' classes that the training step names, and those name, and so on."""
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    methods: dict[str, list[CodeType]] = {}
    for kind in kinds:
        for name, value in vars(kind).items():
            if not kind.__module__.startswith("torch.") and (code := _code_of(value)) is not None:
                methods.setdefault(name, []).append(code)
    found: list[CodeType] = []
    names = ["training_step", "forward"]
    for name in names:  # which grows meanwhile
        for code in methods.pop(name, ()):
            found.append(code)
            names.extend(code.co_names)
    return found


def _catches(code: CodeType) -> bool:
    if code.co_filename.startswith(_NOT_OF_USERS):
        return False
    names = [one.opname for one in dis.get_instructions(code)]
    bare = any(pair == ("PUSH_EXC_INFO", "POP_TOP") for pair in pairwise(names))
    return bare or "CHECK_EXC_MATCH" in names


_SUPPRESSING: Final = contextlib.suppress.__exit__.__code__
_NOT_OF_USERS: Final = (torch.__path__[0], contextlib.__file__)


def hooks_on_nodes(parameters: Sequence[Tensor]) -> tuple[list[Any], list[Mapping[Any, Any]]]:
    """Return the nodes that accumulate gradients, and the dictionaries of the hooks on them.

    Torch says of no node whether it has hooks. But it keeps all of Python in one dictionary, which
    is made for the first of them and stays: here by one that is removed at once.

    Args:
        parameters: Those that need no gradient have no node.

    Returns:
        The nodes, to be held: without that they live no longer than a backward pass. Two
        dictionaries for each, of hooks before and after it.
    """
    nodes = [get_gradient_edge(one).node for one in parameters if one.requires_grad]
    handles = [
        register(_nothing)
        for node in nodes
        for register in (node.register_prehook, node.register_hook)
    ]
    found = [handle.hooks_dict_ref() for handle in handles]
    for handle in handles:
        handle.remove()
    return nodes, [hooks for hooks in found if hooks is not None]


def _nothing(*_: Any) -> None:
    """Change no gradient."""


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
