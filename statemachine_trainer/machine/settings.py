"""The settings of loops: which a class takes, and which are lost when another loop comes."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from statemachine_trainer.machine.caller import level_of_caller
from statemachine_trainer.machine.place import Place

if TYPE_CHECKING:
    from statemachine_trainer.machine.loop import Loop


class LostSettings(UserWarning):
    """A loop that was put into the place of another lacks settings that were given to that one."""


def settings_taken(cls: type) -> list[inspect.Parameter]:
    """Return the settings that `__init__` takes, and its base's where it hands `**others` on."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in base.__dict__ or base is object:
            continue
        passes_on = False
        for parameter in list(inspect.signature(base.__dict__["__init__"]).parameters.values())[1:]:
            if parameter.kind is parameter.VAR_KEYWORD:
                passes_on = True
            elif parameter.kind is not parameter.VAR_POSITIONAL:
                found.setdefault(parameter.name, parameter)
        if not passes_on:
            break
    return list(found.values())


def names_given(cls: type, args: Sequence[Any], kwargs: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the arguments with which an object of a class is made."""
    positions = settings_taken(cls)[: len(args)] if args else ()
    return frozenset([*kwargs, *(one.name for one in positions)])


def has_setting(loop: Loop, name: str) -> bool:
    """Tell whether a loop keeps a setting of this name; its fields, states and places are none."""
    if name in loop._fields or name == "context":
        return False
    static = inspect.getattr_static(type(loop), name, None)
    if isinstance(static, Place) or inspect.isroutine(static):
        return False
    return hasattr(loop, name)


def warn_of_lost(old: Loop, new: Loop, name: str) -> None:
    """Warn of settings that both loops have, and that were given to the first of them alone.

    Args:
        old: The loop that was replaced.
        new: The one that stands in its place.
        name: Of the place.
    """
    lost = [f"{one}={getattr(old, one)!r}" for one in _lost(old, new)]
    if not lost:
        return
    given, kind = ", ".join(lost), type(new).__name__
    warnings.warn(
        f"The {type(old).__name__} in {name!r} was given {given}, and the {kind} that was put into "
        f"its place was not. Say `{name}={kind}({given})`, or give the class, which takes settings "
        "over.",
        LostSettings,
        stacklevel=level_of_caller(),
    )


def _lost(old: Loop, new: Loop) -> Iterator[str]:
    """Yield the settings that were said for `old`, were not said for `new`, and differ."""
    both = [one.name for one in settings_taken(type(new)) if has_setting(new, one.name)]
    for name in both:
        said = name in old._given and name not in new._given and has_setting(old, name)
        if said and not _same(getattr(old, name), getattr(new, name)):
            yield name


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    try:
        return bool(one == other)
    except (TypeError, ValueError, RuntimeError):  # arrays, and what else has no one answer
        return False
