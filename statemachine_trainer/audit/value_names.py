"""Names a value that a run keeps for itself, in words, and says how a checkpoint could hold it."""

from __future__ import annotations

import functools
import threading
import types
from typing import Any

import torch
from torch import nn

from statemachine_trainer.audit.reachable import Roots
from statemachine_trainer.machine.loop import Loop

Words = tuple[str, str]
"""What a value is, in words; what to do so that it is held."""

OF_LOOPS = {"_loops", "_defaulted", "_parent", "_driver", "context"}
OF_MODULES = frozenset(vars(nn.Module())) | {"log"}

_IN_LOOP = "declare it as an annotated field of the class, `name: type = default`"
IN_CALLBACK = "give the callback `state_dict` and `load_state_dict`"
_IN_STATEFUL = "its `state_dict` leaves it out"
_IN_FUNCTION = "keep it in a callback object with `state_dict` and `load_state_dict`"
_IN_MODEL = "make it a buffer, or give the module `get_extra_state` and `set_extra_state`"
_IN_TENSOR = "make it a buffer of a module, or keep it in an object with a state of its own"
_IN_DATA = "give it `state_dict` and `load_state_dict`, or let it follow from the index and epoch"
IN_PROCESS = "a new process begins it anew; keep it in an object with a state of its own"


def name_in_process(_roots: Roots, path: str, holder: object, name: str) -> Words | None:
    """Name a global or an attribute of a class; None for anything else."""
    if path.startswith("global ") and type(holder) is not dict:
        return f"attribute {name!r} of the {path}", IN_PROCESS
    if path.startswith("global "):
        return f"global {name!r} of the module {path.removeprefix('global ')}", IN_PROCESS
    if issubclass(type(holder), type):
        return f"attribute {name!r} of the {path}", IN_PROCESS
    return None


def name_in_objects(roots: Roots, path: str, holder: Any, name: str) -> Words | None:
    """Name a value by its holder; None where checkpoints hold it, or it is no object's.

    Args:
        roots: Where the search began.
        path: The path of the holder.
        holder: The object, or the function, that has the value.
        name: Of the attribute, or of the variable.
    """
    kind = type(holder)  # an object may say of itself what it likes
    if path.startswith("global ") or issubclass(kind, type):
        return None
    if issubclass(kind, nn.Module):  # first, because a model may have hundreds
        if name in OF_MODULES:
            return None
        place = path.removeprefix("model").removeprefix(".") or "at the top of the model"
        return f"attribute {name!r} of the module {place} ({kind.__name__})", _IN_MODEL
    if kind is types.FunctionType:
        return f"attribute {name!r} of the function {holder.__qualname__}", _IN_FUNCTION
    if issubclass(kind, functools.partial):
        called = getattr(holder.func, "__qualname__", path)
        return f"argument {name!r} of the partial of {called}", _IN_FUNCTION
    if issubclass(kind, torch.Tensor):
        return f"attribute {name!r} of the tensor {path}", _IN_TENSOR
    if kind is threading.local:
        return f"attribute {name!r} of {path} (threading.local)", IN_PROCESS
    root = max((one for one in roots if path.startswith(one)), key=len, default="")
    at_root = path == root
    if issubclass(kind, Loop):
        hides = name not in holder._fields and name not in OF_LOOPS
        owner = f"the {path} ({kind.__name__})" if at_root else path
        return (f"attribute {name!r} of {owner}", _IN_LOOP) if hides else None
    if root.startswith("callback "):
        remedy = _IN_STATEFUL if has_state(roots[root]) else IN_CALLBACK
        owner = f"the {root}" if at_root else path
        return f"attribute {name!r} of {owner}", remedy
    if root.startswith(("optimizer ", "scheduler ")):
        known = name in ("state", "param_groups", "defaults")
        return None if known else (f"attribute {name!r} of {path}", _IN_STATEFUL)
    called, _, part = root.partition(".")
    owner = f"the {part} of {called!r} ({kind.__name__})" if at_root and part else path
    return f"attribute {name!r} of {owner}", _IN_DATA


def has_state(thing: object) -> bool:
    """Whether an object writes down its own state."""
    return hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")
