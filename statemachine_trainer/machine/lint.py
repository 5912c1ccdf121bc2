"""Checks of the code of a loop class that find mistakes which would show late, or never."""

from __future__ import annotations

import difflib
import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache, partialmethod
from typing import Any, Final

from statemachine_trainer.machine.errors import (
    LoopDefinitionError,
    ReservedName,
    UndeclaredEvents,
    UnreachableState,
    suggest,
)
from statemachine_trainer.machine.loop import Loop, Place
from statemachine_trainer.machine.source import Facts, facts_of

_DECLARATIONS: Final = (
    "initial", "transitions", "errors", "most_errors", "outcomes", "entries", "posted",
    "most_posted",
)  # fmt: skip
_CONTAINERS: Final = (list, dict, set, deque, bytearray)
_READ_BY_THE_MACHINE: Final = (
    "places", "is_place", "declared", "loops_inside", "walk", "outwards", "find", "place_of",
    "replace", "check_fits", "put", "fill", "stand_in",
)  # fmt: skip


def check_class(cls: type[Loop], path: str) -> None:
    """Refuse a class that overrides what the machine needs, or misspells a declaration.

    Raises:
        ReservedName: It defines `context`, or a method by the name of one that the machine calls.
        LoopDefinitionError: An attribute is nearly a declaration, or a container that all loops
            would share.
    """
    where = f"Loop {path!r} ({cls.__name__})"
    for base in _own_classes(cls):
        for name, value in vars(base).items():
            if name == "context":
                raise ReservedName(
                    f"{where} defines `context` itself, and the machine sets it to what the loops "
                    "of the tree share. Call yours something else."
                )
            if name in _READ_BY_THE_MACHINE and not isinstance(value, Place):
                raise ReservedName(
                    f"{where} defines {name!r}, which the machine calls on every loop. Call yours "
                    "something else."
                )
            if name in cls._called:
                _check_called(cls, name, value, where)
            if name.startswith("_") or name in _DECLARATIONS:
                continue
            _check_attribute(cls, base, name, value, where)


def _check_attribute(cls: type[Loop], base: type, name: str, value: object, where: str) -> None:
    if isinstance(value, str | Sequence | dict):
        near = _declaration_near(name)
        if near is not None and not (near == "errors" and isinstance(value, str)):
            raise LoopDefinitionError(
                f"{where} has an attribute {name!r} that nobody reads. Did you mean `{near}`?"
            )
    container = type(value) in (list, dict, set)
    if container and name.islower() and name not in inspect.get_annotations(base):
        kind = type(value).__name__
        raise LoopDefinitionError(
            f"{cls.__name__}.{name} is a {kind} that all loops of this class would share and no "
            f"snapshot would hold. Write `{name}: {kind} = field(factory={kind})` if it changes in "
            "the course of a run, and a tuple or a name in capitals if it does not."
        )


# Each tree has loops of the same classes, and comparing names takes longer than most of what is checked.
@lru_cache(maxsize=1024)
def _declaration_near(name: str) -> str | None:
    """Return the declaration that a name was probably meant to be."""
    near = difflib.get_close_matches(name, _DECLARATIONS, n=1, cutoff=0.85)
    return near[0] if near else None


def check_called_states(cls: type[Loop], path: str, states: Sequence[str]) -> None:
    """Refuse states named like a method that others call: that call would do the state's work.

    Raises:
        ReservedName: There is one.
    """
    for name in states:
        if name in cls._called:
            owner, _ = _declared_first(cls, name)
            raise ReservedName(
                f"Loop {path!r} ({cls.__name__}) has a state called {name!r}, which is a name that "
                f"{owner} declares for its callers: they would do the state's work. Call the state "
                "something else."
            )


def _check_called(cls: type[Loop], name: str, value: object, where: str) -> None:
    owner, declared = _declared_first(cls, name)
    if value is declared or _have_same_arguments(value, declared):
        return
    if isinstance(declared, property):
        form = f"`{name}` as a property"
        fits = isinstance(value, property | cached_property | bool)
    else:
        arguments = [*inspect.signature(declared).parameters]
        form = f"`{name}({', '.join(arguments)})`"
        fits = isinstance(value, staticmethod | classmethod | partialmethod)
        if inspect.isfunction(value):
            fits = _takes(value, arguments)
    if not fits:
        raise ReservedName(
            f"{where} defines {name!r}, and {owner} declares {form}, which others use. Define it in "
            "that form, or call yours something else."
        )


def _declared_first(cls: type[Loop], name: str) -> tuple[str, Any]:
    """Return the class that declares a name first, and what it declares."""
    owner = next(one for one in reversed(cls.__mro__) if name in vars(one))
    return owner.__name__, vars(owner)[name]


def _have_same_arguments(one: object, other: object) -> bool:
    """Whether both are plain functions whose arguments have the same names; says it without a signature."""
    if not (inspect.isfunction(one) and inspect.isfunction(other)):
        return False
    codes = (one.__code__, other.__code__)
    first, second = (code.co_varnames[: code.co_argcount] for code in codes)
    variable = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS
    return first == second and not any(c.co_flags & variable or c.co_kwonlyargcount for c in codes)


def _takes(function: Callable[..., object], arguments: Sequence[str]) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    return True


def check_fields(loop: Loop, path: str) -> None:
    """Refuse a field that `__init__` sets: the first entry would reset it.

    Raises:
        LoopDefinitionError: `__init__` sets a field.
        ReservedName: `__init__` sets `context`, or hides a method that others call.
    """
    cls = type(loop)
    for name in cls._called & vars(loop).keys():
        if not callable(vars(loop)[name]):
            _check_called(cls, name, vars(loop)[name], f"Loop {path!r} ({cls.__name__})")
    facts = facts_of(inspect.getattr_static(cls, "__init__", None))
    names = [] if facts is None else sorted(facts.sets)
    if "context" in names:
        raise ReservedName(
            f"`__init__` of loop {path!r} ({cls.__name__}) sets `self.context`, and the machine "
            "sets it to what the loops of the tree share. Call yours something else."
        )
    for name in names:
        declared = cls._fields.get(name)
        if declared is not None and declared.scope != "run":
            raise LoopDefinitionError(
                f"{cls.__name__}.{name} of loop {path!r} is annotated in the class, which makes it "
                f"a field: the value that `__init__` gives it is lost when the loop is entered. If "
                f"it is a setting, take the annotation out of the class (`self.{name} = ...` is "
                f"enough); if it is state, take it out of `__init__` and give the field a default."
            )


def check_scopes(loop: Loop, path: str) -> None:
    """Refuse a misspelt scope of a field.

    Raises:
        LoopDefinitionError: No loop around has this name, but one has a similar name.
    """
    around = path.split(".")
    for name, declared in loop._fields.items():
        scope = declared.scope
        if scope is None or scope in (*around, "run"):
            continue
        near = difflib.get_close_matches(scope, [*around, "run"], n=1, cutoff=0.75)
        if near:
            raise LoopDefinitionError(
                f"The field {name!r} of loop {path!r} ({type(loop).__name__}) has the scope "
                f"{scope!r}, the name of no loop around it. Did you mean {near[0]!r}?"
            )


def check_left_out(cls: type[Loop], path: str, states: Sequence[str], guards: set[str]) -> None:
    """Refuse states that are missing or misspelt in `transitions`.

    Only the class that has the transitions, and classes derived from it, are checked: a base class
    may offer states that a loop does not use.

    Raises:
        UnreachableState: A loop, or a method with events, that no transition names.
        LoopDefinitionError: A name is a loop and a method at once.
    """
    where = f"loop {path!r} ({cls.__name__})"
    for base in _beside_the_transitions(cls):
        annotations = inspect.get_annotations(base)
        for name in {**annotations, **vars(base)}:
            value = vars(base).get(name)
            method = inspect.isfunction(value)
            is_loop = isinstance(value, Place) or _names_a_loop(annotations.get(name))
            if is_loop and method:
                raise LoopDefinitionError(
                    f"{name!r} in {where} is a loop and a method; only the one written last is "
                    "there. Give one of them another name."
                )
            if name in states or name in guards or name.startswith("_"):
                continue
            if is_loop or (method and _answers(value)):
                what = "a loop" if is_loop else "a method that answers with events"
                way_out = "remove it" if is_loop else "begin its name with an underscore"
                raise UnreachableState(
                    f"{name!r} in {where} is {what}, and no transition names it. "
                    f"{suggest(name, states)} Add the transition that leads to it; if it is to be "
                    f"no state, {way_out}."
                )


def check_state(method: Callable[..., object], loop: Loop, path: str) -> None:
    """Check that a state method, and the methods that it calls, set only declared fields.

    Raises:
        LoopDefinitionError: One sets or changes an attribute that is not a field.
    """
    cls = type(loop)
    parts = _with_helpers(method, cls)
    for name in sorted({name for one in parts for name in one.sets}):
        known = inspect.getattr_static(cls, name, None)
        if name.startswith("_") or name in cls._fields or inspect.isdatadescriptor(known):
            continue
        kind = type(known).__name__ if isinstance(known, int | float | str) else "..."
        start = repr(known) if kind != "..." else "..."
        raise LoopDefinitionError(
            f"State {path!r} ({cls.__name__}) sets `self.{name}`, which is no field: a resumed run "
            f"would not have it. Declare it in the class, `{name}: {kind} = {start}`, and it is "
            "reset when the loop is entered and written down with each snapshot (or begin its name "
            "with an underscore if it can be lost)."
        )
    for name in sorted({name for one in parts for name in one.changes}):
        value = vars(loop).get(name)
        if name.startswith("_") or name in cls._fields or not isinstance(value, _CONTAINERS):
            continue
        kind = type(value).__name__
        raise LoopDefinitionError(
            f"State {path!r} ({cls.__name__}) changes the {kind} `self.{name}`, which is no field: a "
            f"resumed run would have it as `__init__` makes it. Declare it in the class, "
            f'`{name}: {kind} = field(factory={kind})` (with `scope="run"` if no entry is to empty '
            "it), and take it out of `__init__` (or begin its name with an underscore if it can be "
            "lost)."
        )


def check_hooks(cls: type[Loop], path: str, states: Sequence[str], events: Sequence[str]) -> None:
    """Refuse methods of a loop that look like receivers, because they are never called.

    Raises:
        LoopDefinitionError: There is a method `on_<state>`, `on_enter_...`, `on_exit_...`,
            `before_<event>` or `after_<event>`.
    """
    for base in _beside_the_transitions(cls):
        for name, value in vars(base).items():
            if name in states or not inspect.isfunction(value):
                continue
            kind, _, rest = name.partition("_")
            entered = name.startswith(("on_enter_", "on_exit_"))
            if entered or (kind == "on" and rest in states):
                signal = rest.removeprefix("enter_")
                if rest.startswith("exit_"):
                    signal = f"{rest.removeprefix('exit_')}:exit"
            elif kind in ("before", "after") and rest in events:
                signal = f"STATE:{rest}"
            else:
                continue
            raise LoopDefinitionError(
                f"Nobody calls `{name}` of loop {path!r} ({cls.__name__}): a loop has states, and "
                f"receivers are subscribed to their signals. Do its work in the state itself, or "
                f"subscribe it: `trainer.on({signal!r}, ...)`. Begin its name with an underscore if "
                "you call it yourself."
            )


def check_answers(
    method: Callable[..., object], name: str, cls: type[Loop], path: str, events: Sequence[str]
) -> None:
    """Compare the events that a method returns by name with those that it declares.

    A method without a body (`...`) is a sketch: it can be drawn, but not run.

    Raises:
        UndeclaredEvents: It returns an event that it does not declare, or never returns one.
    """
    facts = facts_of(method)
    if facts is None:
        return
    said = ", ".join(f'"{event}"' for event in events)
    for constant in facts.returns:
        if isinstance(constant, str) and constant not in events:
            raise UndeclaredEvents(
                f"State {path!r} ({cls.__name__}.{name}) returns {constant!r}, and its annotation "
                f"declares {said}. {suggest(constant, events)} Return one of these, or add the "
                f'event: `-> Literal[{said}, "{constant}"]`.'
            )
    if not facts.returns_others and facts.returns == {None} and not facts.is_empty:
        raise UndeclaredEvents(
            f"State {path!r} ({cls.__name__}.{name}) never returns an event, so the loop would not "
            f'go on from it. End it with `return "{events[0]}"`.'
        )


def _own_classes(cls: type[Loop]) -> Iterator[type]:
    """Yield the class and its bases up to, and without, `Loop`."""
    yield from cls.__mro__[: cls.__mro__.index(Loop)]


def _beside_the_transitions(cls: type[Loop]) -> Iterator[type]:
    """Yield the class and its bases, down to the one that has the transitions in force."""
    for base in _own_classes(cls):
        yield base
        if {"transitions", "initial"} & vars(base).keys():
            return


def _names_a_loop(annotation: object) -> bool:
    """Whether an annotation says `Loop`."""
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return name == "Loop"


def _answers(value: Any) -> bool:
    """Whether a function looks like a state: only `self` to give it, and a `Literal` to return."""
    annotation = getattr(value, "__annotations__", {}).get("return", "")
    return value.__code__.co_argcount == 1 and "Literal[" in str(annotation)


def _with_helpers(method: Callable[..., object], cls: type[Loop]) -> list[Facts]:
    """Read a state method and the methods of its class that it calls, or that these call."""
    found: dict[str, Facts] = {}
    todo = [(getattr(method, "__name__", ""), method)]
    while todo:
        name, function = todo.pop()
        facts = facts_of(function)
        if facts is None or name in found:
            continue
        found[name] = facts
        for called in facts.calls - vars(Loop).keys():
            helper = inspect.getattr_static(cls, called, None)
            if inspect.isfunction(helper):
                todo.append((called, helper))
    return list(found.values())
