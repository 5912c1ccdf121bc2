"""Swapping loops of a tree: what is carried over, and how a swap that does not hold is undone."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from statemachine_trainer.machine.errors import CannotBuild, LoopDefinitionError, level_of_caller

if TYPE_CHECKING:
    from statemachine_trainer.machine.loop import Loop


# -- Settings that a swap loses -------------------------------------------------------------------


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
    if name in loop.places() or inspect.isroutine(static):
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


class Machine(Protocol):
    """What a tree of loops has to know of the machine that runs it."""

    name: str

    def rebuild(self) -> None:
        """Read the tree anew, or raise and change nothing."""

    def check_replaceable(self, owner: Loop, place: str) -> None:
        """Raise if the machine stands inside the loop in this place."""


StatePolicy = Literal["reset", "keep"] | Callable[["Loop", "Loop"], None]


def swap(outer: Loop, loops: Mapping[str, Loop | type[Loop]], state: StatePolicy) -> None:
    """Put loops into places at or below `outer`, all of them or, if anything fails, none.

    See `Loop.replace` for arguments and errors.
    """
    if state not in ("reset", "keep") and not callable(state):
        raise LoopDefinitionError(
            f"state={state!r}: use 'reset', 'keep' or a function of the two loops."
        )
    machines = [one._driver for one in outer.outwards() if one._driver is not None]
    before, rebuilt = _Before(), []
    put: list[tuple[str, Loop, Loop]] = []
    try:
        for name, given in loops.items():
            owner, key = outer.place_of(name)
            old = owner.loops_inside().get(key)
            new = _put(owner, key, given, state, machines, before)
            if old is not None and old._parent is None:  # else it stands in another place now
                put.append((key, old, new))
        for machine in machines:
            machine.rebuild()
            rebuilt.append(machine)
        for key, old, new in put:  # last, for a warning may be an error
            warn_of_lost(old, new, key)
    except BaseException:
        before.restore()
        for machine in rebuilt:
            machine.rebuild()
        raise


def _put(
    owner: Loop,
    key: str,
    given: Loop | type[Loop],
    state: StatePolicy,
    machines: list[Machine],
    before: _Before,
) -> Loop:
    """Put a loop into a place and return it."""
    old = owner.loops_inside().get(key)
    new = _build(given, old, key)
    if new is old:
        return new
    owner.check_fits(key, new)
    for machine in machines:
        machine.check_replaceable(owner, key)
    before.remember(owner, old, new)
    if old is not None and not _stands_elsewhere(old, owner, key):
        for name in _carried(old, new) if new._parent is None else ():
            inner = old._loops.pop(name)
            before.remember(inner)
            new.put(name, inner)
        old._parent = None
    owner.put(key, new)
    if old is not None and state == "keep":
        values = old.state_dict()
        vars(new).update((name, values[name]) for name in new._fields if name in values)
    elif old is not None and callable(state):
        state(old, new)
    return new


class _Before:
    """What loops were like before a swap."""

    def __init__(self) -> None:
        self._saved: dict[int, tuple[Loop, dict[str, Any]]] = {}

    def remember(self, *loops: Loop | None) -> None:
        for loop in loops:
            if loop is not None and id(loop) not in self._saved:
                inside = {"_loops": dict(loop._loops), "_defaulted": set(loop._defaulted)}
                self._saved[id(loop)] = (loop, {**vars(loop), **inside})

    def restore(self) -> None:
        for loop, saved in self._saved.values():
            vars(loop).clear()
            vars(loop).update(saved)


def _stands_elsewhere(loop: Loop, owner: Loop, key: str) -> bool:
    """Tell whether the same swap has just put a loop into another place."""
    others = (one for name, one in owner._loops.items() if name != key)
    return loop._parent is not owner or any(one is loop for one in others)


def _carried(old: Loop, new: Loop) -> list[str]:
    """Names of the loops inside `old` that move into places of `new`.

    Those are the places that nobody filled. A default that `new` declares itself stays, unless the
    loop in `old` was put there by someone.
    """
    old.loops_inside()
    new.loops_inside()
    names = [n for n in new.places() if n in old._loops]
    return [
        name
        for name in names
        if name not in new._loops
        or (name in new._defaulted and not _declares_another(old, new, name))
    ]


def _declares_another(old: Loop, new: Loop, name: str) -> bool:
    return name in old._defaulted and _factory(old, name) is not _factory(new, name)


def _factory(loop: Loop, name: str) -> object:
    return getattr(inspect.getattr_static(type(loop), name, None), "factory", None)


def _build(given: Loop | type[Loop], old: Loop | None, name: str) -> Loop:
    """Return the loop to put in: the one given, or one of that class with the settings of `old`."""
    if not isinstance(given, type):
        return given
    settings: dict[str, Any] = {}
    for parameter in settings_taken(given):
        if old is not None and has_setting(old, parameter.name):
            settings[parameter.name] = getattr(old, parameter.name)
        elif parameter.default is parameter.empty:
            kind = type(old).__name__ if old else "none"
            raise CannotBuild(
                f"{given.__name__} needs the setting {parameter.name!r}, which the loop in "
                f"{name!r} ({kind}) does not have. Give an instance: "
                f"`{name}={given.__name__}({parameter.name}=...)`."
            )
    try:
        return given(**settings)
    except TypeError as error:
        raise CannotBuild(
            f"{given.__name__} could not be built with the settings "
            f"{', '.join(settings) or 'none'} of the loop in {name!r} ({error}). Give "
            f"an instance: `{name}={given.__name__}(...)`."
        ) from error
