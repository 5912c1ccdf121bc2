"""What a run noted of its receivers and callbacks, so that a resumed one is told of others.

Many receivers only look, and come and go. So only those are compared that may change the training, as far
as their code tells: they draw random numbers, set attributes of others, change tensors in place, or call
what acts on a model or a run. Stopping and pausing do not count.
"""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, Final, cast

from statemachine_trainer.audit.changing_code import DRAWS, codes_of, is_in_place
from statemachine_trainer.audit.functions import function_behind, variables_of
from statemachine_trainer.audit.settings_of_run import ITS_CLASS, RECEIVERS
from statemachine_trainer.machine.board import SignalBoard
from statemachine_trainer.machine.signals import label_of
from statemachine_trainer.snapshot.kinds import attributes_of_class, is_users

Noted = Mapping[tuple[str, str], tuple[None, str]]

_ACTS: Final = DRAWS | {
    *("end_epoch", "setattr", "delattr", "load_state_dict", "load_weights"),
    *("train", "eval", "backward", "zero_grad", "add_param_group", "add_module", "register_buffer"),
    *("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"),
    *("seed", "manual_seed", "setstate", "set_state", "set_rng_state", "set_epoch", "freeze"),
}
"""Names of functions and methods that act on a model or on a run."""

_DEPTH: Final = 3
"""Calls of functions of users that are followed."""


def receivers_noted(board: SignalBoard, without: Iterable[object]) -> Noted:
    """Return how often each receiver of a user is called, and which of them may change the training.

    Args:
        board: The signals of the trainer.
        without: Objects whose methods are noted elsewhere: the modules of the model.
    """
    noted: dict[tuple[str, str], tuple[None, str]] = {(RECEIVERS, ITS_CLASS): (None, RECEIVERS)}
    elsewhere = {id(one) for one in without}
    acting: dict[str, list[str]] = {}
    for one in sorted(board.subscriptions, key=lambda one: -one.priority):
        receiver = _inside(one.receiver)
        owner = getattr(receiver, "__self__", None)
        if not _is_of_user(receiver, owner) or id(owner) in elsewhere:
            continue
        if _may_act(receiver, owner):
            acting.setdefault(one.name, []).append(_name(receiver, owner))
    for name, labels in acting.items():
        noted[RECEIVERS, f"on {name!r}"] = (None, ", ".join(labels))
    return noted | dict(_intervals(board))


def _intervals(board: SignalBoard) -> Noted:
    """Return how often each receiver of a user is called."""
    found: dict[tuple[str, str], tuple[None, str]] = {}
    for one in board.subscriptions:
        if _is_of_user(one.receiver, getattr(one.receiver, "__self__", None)):
            key = (f"receiver {label_of(one.receiver)} of {one.name!r}", "every")
            while key in found:
                key = (f"{key[0]}, and again", "every")
            found[key] = (None, "1" if one.every is None else str(one.every))
    return found


def _is_of_user(receiver: object, owner: object) -> bool:
    return is_users(getattr(receiver if owner is None else type(owner), "__module__", None))


def _name(receiver: Any, owner: object) -> str:
    """Return a name that tells methods of a base class apart."""
    if owner is None or isinstance(owner, type | types.ModuleType):
        return label_of(receiver)
    name = getattr(receiver, "__name__", None)
    return label_of(receiver) if name is None else f"{type(owner).__qualname__}.{name}"


def _inside(receiver: Any) -> Any:
    """Return the function of a partial."""
    while isinstance(receiver, functools.partial):
        receiver = receiver.func
    return receiver


def _may_act(receiver: Any, owner: object) -> bool:
    functions = _functions_of(receiver)
    if owner is not None and not isinstance(owner, types.ModuleType):
        functions += _methods_of(cast(Hashable, type(owner)))
    elif not functions:  # an object that is called
        functions += _methods_of(cast(Hashable, type(receiver)))
    return any(_acts(one) for one in _with_called(functions))


def _functions_of(thing: object) -> list[types.FunctionType]:
    thing = function_behind(thing)
    return [thing] if isinstance(thing, types.FunctionType) else []


@functools.lru_cache(maxsize=512)
def _methods_of(kind: type) -> list[types.FunctionType]:
    bases = [base for base in kind.__mro__ if is_users(base.__module__)]
    inside = [one for base in bases for one in attributes_of_class(base).values()]
    return [function for one in inside for function in _functions_of(one)]


def _with_called(functions: list[types.FunctionType]) -> Iterator[types.CodeType]:
    """Yield the code of functions, and of the functions of users that they name."""
    seen: set[types.CodeType] = set()
    for _ in range(_DEPTH):
        named: list[types.FunctionType] = []
        for one in functions:
            if one.__code__ in seen or not codes_of(one):
                continue
            seen.add(one.__code__)
            yield one.__code__
            for _, value in variables_of(one):
                named += _functions_of(value)
        functions = named


def _sets_attributes_of_others(code: types.CodeType) -> bool:
    loaded = augmented = before = ""
    for one in dis.get_instructions(code):
        if one.opname == "LOAD_CONST":
            loaded = ""
        elif one.opname.startswith("LOAD_"):  # some load two variables, the second one on top
            loaded = str(one.argval[-1] if isinstance(one.argval, tuple) else one.argval)
        elif one.opname == "COPY":  # `self.x += ...`
            augmented = loaded
        elif one.opname == "STORE_ATTR" and (augmented if before == "SWAP" else loaded) != "self":
            return True
        before = one.opname
    return False


def _sets_items(code: types.CodeType) -> bool:
    return "update" in code.co_names or dis.opmap["STORE_SUBSCR"] in code.co_code[::2]


@functools.lru_cache(maxsize=4096)
def _acts(code: types.CodeType) -> bool:
    names = {*code.co_names}
    if "post" in names and "set" not in code.co_consts:  # a setting that is posted is held
        return True
    if names & _ACTS or any(map(is_in_place, names)):
        return True
    if _sets_attributes_of_others(code):
        return True
    if "param_groups" in names and _sets_items(code):  # `group["lr"] = ...`
        return True
    return any(_acts(one) for one in code.co_consts if isinstance(one, types.CodeType))
