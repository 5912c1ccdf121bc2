"""What a captured step was read from, and that Dynamo does not look at again; hooks of all kinds."""

from __future__ import annotations

import contextlib
import dis
import sys
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from statemachine_trainer.loops.compiled.lookups import Lookups, function_of


class Watch:
    """The code that was read and the names that it looks up, and hooks of modules.

    Args:
        read: The code that was read; empty if that is not known.
        bare: Dictionaries of hooks that were empty.
        kinds: The classes of the objects that were met.
        model: The module whose step it is.
        asked: Modules and functions that were met.
    """

    def __init__(
        self,
        read: Sequence[CodeType],
        bare: Sequence[Mapping[Any, Any]],
        kinds: Iterable[type],
        model: nn.Module,
        asked: Iterable[ModuleType | FunctionType],
    ) -> None:
        # Each once; those for hooks with keywords are filled with these.
        self._bare = [*{id(one): one for one in bare if isinstance(one, OrderedDict)}.values()]
        files = {getattr(module, "__file__", None): module for module in list(sys.modules.values())}
        named = {kind for code in read if (kind := _class_of(code, files))}
        self._lookups = Lookups(read or named_by_steps(model), {*named, *kinds}, model, asked)

    def holds(self) -> bool:
        """Tell whether names stand for what they stood for, and there is no new hook."""
        return not any(self._bare) and (self._lookups.unchanged() or self._lookups.hold())


def catching(read: Sequence[CodeType], model: nn.Module) -> CodeType | None:
    """Return code of others than torch that catches exceptions; None if there is none.

    Dynamo reads what comes after an exception. That something was missing, a key or an attribute,
    it does not look at again.

    Args:
        read: The code that was read; empty if that is not known.
        model: The module whose step it is.
    """
    read = read or named_by_steps(model)
    return next((code for code in read if code is _SUPPRESSING or _catches(code)), None)


def named_by_steps(model: nn.Module) -> list[CodeType]:
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
    function = function_of(value)
    return None if function is None else function.__code__


def _class_of(code: CodeType, files: Mapping[str | None, ModuleType]) -> type | None:
    """Find the class that a method belongs to, by its name in its module."""
    path = code.co_qualname.split(".")[:-1]
    found: Any = files.get(code.co_filename)
    for name in path:
        found = getattr(found, name, None)
    ours = isinstance(found, type) and not found.__module__.startswith("torch.")
    return found if ours else None
