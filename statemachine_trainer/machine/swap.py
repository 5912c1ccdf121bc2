"""Swapping loops of a tree: what is carried over, and how a failed swap is undone.

A loop is in a place because somebody chose it, or because a class declares it as the default. When
the loop around it is replaced, a chosen loop is carried over. A default loop is not: the class of
the new loop makes its own default, with the settings that were given for the old one.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from statemachine_trainer.machine.errors import CannotBuild, LoopDefinitionError, level_of_caller
from statemachine_trainer.machine.fields import copied

if TYPE_CHECKING:
    from statemachine_trainer.machine.loop import Loop


# -- Settings that a swap loses -------------------------------------------------------------------


class LostSettings(UserWarning):
    """A loop replaced another one without the settings that were given to it."""


def settings_taken(cls: type) -> list[inspect.Parameter]:
    """Return the settings that `__init__` takes, and those of its base if it passes `**others` on."""
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
    """Return whether a loop has a setting of this name. Fields, states and places are not settings."""
    if name in loop._fields or name == "context":
        return False
    static = inspect.getattr_static(type(loop), name, None)
    if loop.is_place(name) or inspect.isroutine(static):
        return False
    return hasattr(loop, name)


def settings_said(loop: Loop) -> list[str]:
    """Return the settings that somebody passed to a loop, or set on it later."""
    plain: list[Loop] = []
    return [
        one.name
        for one in settings_taken(type(loop))
        if has_setting(loop, one.name)
        and (one.name in loop._given or _is_set(loop, one.name, one.default, plain))
    ]


def _is_set(loop: Loop, name: str, default: object, plain: list[Loop]) -> bool:
    """Return whether a setting that was not passed differs from that of a new loop of this class.

    Args:
        loop: The loop.
        name: Name of the setting.
        default: Default of the argument. The loop may store it in another form.
        plain: A cache of one new loop of this class, made when it is needed.
    """
    value = getattr(loop, name)
    if same(value, default):
        return False
    if not plain:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                plain.append(type(loop)())
        except Exception:  # it needs arguments
            return True
    return not (has_setting(plain[0], name) and same(value, getattr(plain[0], name)))


def warn_of_lost(old: Loop, new: Loop, name: str, *, chosen: bool) -> None:
    """Warn of settings that were given to the old loop, and that the new loop does not have.

    It may have one with another value; or no such setting at all, where nobody chose the old loop
    but only its settings: those of a loop that somebody chose go with it.

    Args:
        old: The loop that was replaced.
        new: The loop that replaced it.
        name: Name of the place.
        chosen: Whether somebody chose the old loop.
    """
    kind = type(new).__name__
    taken = {one.name for one in settings_taken(type(new))}
    without = [
        one
        for one in settings_said(old)
        if one not in taken
        and not (hasattr(new, one) and same(getattr(old, one), getattr(new, one)))
    ]
    if without and not chosen:
        _warn_of_no_home(old, without, name, f"a {kind}, which has no such setting")
    lost = [f"{one}={getattr(old, one)!r}" for one in _lost(old, new)]
    if not lost:
        return
    given = ", ".join(lost)
    warnings.warn(
        f"The {type(old).__name__} in {name!r} was given {given}, and the {kind} that was put into "
        f"its place was not. Say `{name}={kind}({given})`, or give the class, which takes settings "
        "over.",
        LostSettings,
        stacklevel=level_of_caller(),
    )


def _warn_of_no_home(old: Loop, settings: Sequence[str], name: str, instead: str) -> None:
    given = ", ".join(f"{one}={getattr(old, one)!r}" for one in settings)
    warnings.warn(
        f"The {type(old).__name__} in {name!r} was given {given}. In its place is now {instead}: "
        f"{'it is' if len(settings) == 1 else 'they are'} not in force any more. Do in the new loop "
        "what it asked for, or do not give it.",
        LostSettings,
        stacklevel=level_of_caller(),
    )


def _lost(old: Loop, new: Loop) -> Iterator[str]:
    """Yield the settings that were given for `old` but not for `new`, and that differ."""
    taken = [one.name for one in settings_taken(type(new)) if has_setting(new, one.name)]
    said = settings_said(old)
    for name in taken:
        if (
            name in said
            and name not in new._given
            and not same(getattr(old, name), getattr(new, name))
        ):
            yield name


def same(one: Any, other: Any) -> bool:
    """Return whether two settings are equal. Settings that cannot be compared are not."""
    if one is other:
        return True
    try:
        return bool(one == other)
    except (TypeError, ValueError, RuntimeError):  # such as arrays
        return False


class Machine(Protocol):
    """The machine that runs a tree of loops, as the tree sees it."""

    name: str

    def rebuild(self) -> None:
        """Read the tree again, or raise and change nothing."""

    def check_replaceable(self, owner: Loop, place: str) -> None:
        """Raise if the running state is inside the loop in this place."""


StatePolicy = Literal["reset", "keep"] | Callable[["Loop", "Loop"], None]


def swap(
    outer: Loop,
    loops: Mapping[str, Loop | type[Loop]],
    state: StatePolicy,
    *,
    temporary: bool = False,
) -> None:
    """Put loops into places at or below `outer`: all of them, or none if anything fails.

    See `Loop.replace` for arguments and errors. A temporary loop need not have the settings of the
    one that it stands in for: that one comes back with them.
    """
    if state not in ("reset", "keep") and not callable(state):
        raise LoopDefinitionError(
            f"state={state!r}: use 'reset', 'keep' or a function of the two loops."
        )
    machines = [one._driver for one in outer.outwards() if one._driver is not None]
    one_swap, rebuilt = _Swap(state, machines, temporary=temporary), []
    try:
        for name, given in loops.items():
            owner, key = outer.place_of(name)
            one_swap.put(owner, key, given)
        for machine in machines:
            machine.rebuild()
            rebuilt.append(machine)
        one_swap.warn()  # last, because a warning may be an error
    except BaseException:
        one_swap.before.restore()
        for machine in rebuilt:
            machine.rebuild()
        raise


class _Swap:
    """One swap of one or several loops."""

    def __init__(self, state: StatePolicy, machines: Sequence[Machine], *, temporary: bool) -> None:
        self.state, self.machines, self.before = state, machines, _Before()
        self._temporary = temporary
        self._replaced: list[tuple[str, Loop, Loop, bool]] = []
        self._left_out: list[tuple[str, Loop, Loop]] = []

    def put(self, owner: Loop, key: str, given: Loop | type[Loop]) -> None:
        """Put a loop into a place."""
        old = owner.loops_inside().get(key)
        new = _build(given, old, key)
        if new is old:
            return
        owner.check_fits(key, new)
        for machine in self.machines:
            machine.check_replaceable(owner, key)
        self.before.remember(owner, old, new)
        chosen = key not in owner._declared
        if old is not None and not _stands_elsewhere(old, owner, key):
            if new._parent is None:
                self._fill(new, old)
            old._parent = None
        owner.put(key, new, None if key in owner._given else _class_at_work(owner))
        if old is not None:
            if callable(self.state):
                self.state(old, new)
            self._note(key, old, new, chosen=chosen)

    def warn(self) -> None:
        """Warn of settings that are lost."""
        for key, old, new, chosen in self._replaced:
            if [*old.outwards()][-1] is not [*new.outwards()][-1]:  # else it is in another tree now
                warn_of_lost(old, new, key, chosen=chosen)
        for key, outer, dropped in self._left_out:  # with all that is inside
            for path, loop in dropped.walk(key):
                if said := settings_said(loop):
                    where = f"nothing: a {type(outer).__name__} has no place {key!r}"
                    _warn_of_no_home(loop, said, path, where)

    def _fill(self, new: Loop, old: Loop) -> None:
        """Fill the places of `new` with the chosen loops, or the settings, of those of `old`."""
        for name, inner in old.loops_inside().items():
            if not new.is_place(name):
                if name in old._declared and inner._stands_for is None and not self._temporary:
                    self._left_out.append((name, new, inner))
                continue
            own = new._loops.get(name)
            given = own is not None and name not in new._declared
            if not given and _is_carried(old, new, name):
                self.before.remember(old, inner)
                del old._loops[name]
                new.put(name, inner, declared_by=old._declared.pop(name, None))
                continue
            was = inner if inner._stands_for is None else inner._stands_for
            if own is None:
                own = new.fill(name, **_handed_on(was, new.declared(name)))
            elif not given:
                self.before.remember(own)
                for setting in _lost(was, own):
                    setattr(own, setting, getattr(was, setting))
            if own._parent is not new or was is own:
                continue  # it is in two places, which the machine refuses
            self.before.remember(own, was)
            self._fill(own, was)
            self._note(name, was, own, chosen=name not in old._declared)

    def _note(self, key: str, old: Loop, new: Loop, *, chosen: bool) -> None:
        if self.state == "keep":
            values = {name: copied(vars(old)[name]) for name in old._fields if name in vars(old)}
            vars(new).update((name, values[name]) for name in new._fields if name in values)
        kept = chosen or self._temporary or old._stands_for is not None
        self._replaced.append((key, old, new, kept))


def _is_carried(old: Loop, new: Loop, name: str) -> bool:
    """Return whether the loop in a place of `old` moves into that of `new`, if none was given."""
    if name not in old._declared:
        return True  # somebody chose it
    declares = new._declared.get(name, new.declared(name))
    if declares is not None and declares is not old._declared[name]:
        return False
    # Deeper inside, the `__init__` of a class may have put in loops other than the defaults.
    if not _is_as_declared(old._loops[name], chosen=True):
        return False
    return name not in new._loops or _is_as_declared(new._loops[name], chosen=False)


def _is_as_declared(loop: Loop, *, chosen: bool) -> bool:
    """Return whether all loops inside are the defaults of their places.

    Args:
        loop: The loop.
        chosen: The result for a loop that somebody chose.
    """
    return all(
        (loop._declared[name] is loop.declared(name) if name in loop._declared else chosen)
        and _is_as_declared(inner, chosen=chosen)
        for name, inner in loop._loops.items()
    )


def _handed_on(old: Loop, factory: object) -> dict[str, Any]:
    """Return those settings given for a loop that its replacement takes, too."""
    taken = settings_taken(factory) if isinstance(factory, type) else settings_taken(type(old))
    names = {one.name for one in taken}
    return {name: getattr(old, name) for name in settings_said(old) if name in names}


def _class_at_work(owner: Loop) -> type | None:
    """Return the class of a loop at or around `owner` whose `__init__` is running; None if none is.

    A loop that a class puts in within `__init__` is a default: the user has not chosen it. Only the
    stack tells this from an assignment right after `__init__`.
    """
    around = list(owner.outwards())
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__init__" and code.co_argcount:
            made = frame.f_locals.get(code.co_varnames[0])
            if any(made is loop for loop in around):
                return type(made)
        frame = frame.f_back
    return None


class _Before:
    """The state of the loops before a swap, to undo it."""

    def __init__(self) -> None:
        self._saved: dict[int, tuple[Loop, dict[str, Any]]] = {}

    def remember(self, *loops: Loop | None) -> None:
        for loop in loops:
            if loop is not None and id(loop) not in self._saved:
                inside = {"_loops": dict(loop._loops), "_declared": dict(loop._declared)}
                self._saved[id(loop)] = (loop, {**vars(loop), **inside})

    def restore(self) -> None:
        for loop, saved in self._saved.values():
            vars(loop).clear()
            vars(loop).update(saved)


def _stands_elsewhere(loop: Loop, owner: Loop, key: str) -> bool:
    """Return whether the same swap has just put a loop into another place."""
    others = (one for name, one in owner._loops.items() if name != key)
    return loop._parent is not owner or any(one is loop for one in others)


def _build(given: Loop | type[Loop], old: Loop | None, name: str) -> Loop:
    """Return the given loop, or make one of the given class with the settings of `old`."""
    if not isinstance(given, type):
        return given
    settings: dict[str, Any] = {}
    said = settings_said(old) if old is not None else []
    for parameter in settings_taken(given):
        known = old is not None and has_setting(old, parameter.name)
        if parameter.name in said or (known and parameter.default is parameter.empty):
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
