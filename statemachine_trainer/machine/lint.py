"""What the code of a loop class tells before it runs: mistakes that would show late, or never."""

from __future__ import annotations

import difflib
import dis
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from types import CodeType
from typing import Any, Final

from statemachine_trainer.machine.errors import (
    LoopDefinitionError,
    ReservedName,
    UndeclaredEvents,
    UnreachableState,
    suggest,
)
from statemachine_trainer.machine.loop import Loop, Place

_DECLARATIONS: Final = ("initial", "transitions", "outcomes", "entries", "posted")
_READ_BY_THE_MACHINE: Final = (
    "places", "is_place", "declared", "loops_inside", "walk", "outwards", "find", "place_of",
    "replace", "check_fits", "put", "fill", "stand_in",
)  # fmt: skip


def check_class(cls: type[Loop], path: str) -> None:
    """Refuse a class that hides what the machine needs, or misspells what it declares.

    Raises:
        ReservedName: It defines `context`, or a method by the name of one that the machine calls.
        LoopDefinitionError: An attribute that is nearly a declaration, or a container all share.
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
            if name.startswith("_") or name in _DECLARATIONS:
                continue
            _check_attribute(cls, base, name, value, where)


def _check_attribute(cls: type[Loop], base: type, name: str, value: object, where: str) -> None:
    if isinstance(value, str | Sequence | dict):
        near = difflib.get_close_matches(name, _DECLARATIONS, n=1, cutoff=0.85)
        if near:
            raise LoopDefinitionError(
                f"{where} has an attribute {name!r} that nobody reads. Did you mean `{near[0]}`?"
            )
    container = type(value) in (list, dict, set)
    if container and name.islower() and name not in inspect.get_annotations(base):
        kind = type(value).__name__
        raise LoopDefinitionError(
            f"{cls.__name__}.{name} is a {kind} that all loops of this class would share and no "
            f"snapshot would hold. Write `{name}: {kind} = field(factory={kind})` if it changes in "
            "the course of a run, and a tuple or a name in capitals if it does not."
        )


def check_fields(loop: Loop, path: str) -> None:
    """Refuse a field whose value from `__init__` would be reset at the first entry.

    Raises:
        LoopDefinitionError: `__init__` sets a field.
        ReservedName: `__init__` sets `context`.
    """
    cls = type(loop)
    names = sorted(_sets(inspect.getattr_static(cls, "__init__", None)))
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
    """Refuse the scope of a field that is nearly, but not quite, a loop around it.

    Raises:
        LoopDefinitionError: No loop around has the name, and one has a similar one.
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
    """Refuse states that were written and then forgotten in `transitions`, or misspelt.

    Only what is written beside the transitions, or in classes derived from there, is looked at: a
    base class may offer states that a loop makes no use of.

    Raises:
        UnreachableState: A loop, or a method with events, that no transition names.
        LoopDefinitionError: A name that is a loop and a method at once.
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


def check_state(method: Callable[..., object], cls: type[Loop], path: str) -> None:
    """Compare what a state method does with what its loop declares.

    Raises:
        LoopDefinitionError: It keeps something in an attribute that is no field.
    """
    for name in sorted(_sets(method)):
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


def check_answers(
    method: Callable[..., object], name: str, cls: type[Loop], path: str, events: Sequence[str]
) -> None:
    """Compare the events that a method returns by name with those that it declares.

    A method with nothing in it (`...`) is a sketch, which may be drawn before it can run.

    Raises:
        UndeclaredEvents: It returns an event that it does not declare, or nothing at all.
    """
    code = _code_of(method)
    if code is None or code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE):
        return
    constants, others = _returned(code)
    said = ", ".join(f'"{event}"' for event in events)
    for constant in constants:
        if isinstance(constant, str) and constant not in events:
            raise UndeclaredEvents(
                f"State {path!r} ({cls.__name__}.{name}) returns {constant!r}, and its annotation "
                f"declares {said}. {suggest(constant, events)} Return one of these, or add the "
                f'event: `-> Literal[{said}, "{constant}"]`.'
            )
    if not others and constants == {None} and not _is_empty(code):
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


def _code_of(function: object) -> CodeType | None:
    """Return the code of a function that is called as it stands; None of one that is wrapped."""
    function = getattr(function, "__func__", function)
    if not inspect.isfunction(function) or hasattr(function, "__wrapped__"):
        return None
    return function.__code__


def _sets(function: object) -> frozenset[str]:
    """Return the attributes that a method sets on its first argument."""
    code = _code_of(function)
    return frozenset() if code is None else _stored(code)


@functools.cache
def _stored(code: CodeType) -> frozenset[str]:
    if not code.co_argcount:
        return frozenset()
    own, found = code.co_varnames[0], set()
    steps = list(dis.get_instructions(code))
    for number, one in enumerate(steps):
        before = steps[max(number - 2, 0) : number]
        plain = one.opname == "STORE_ATTR" and _loads(before[-1:], own)
        # `self.n += 1` reads the attribute of a copy of `self`, and stores it much later.
        augmented = (
            one.opname == "LOAD_ATTR"
            and [step.opname for step in before[1:]] == ["COPY"]
            and _loads(before[:1], own)
        )
        if plain or augmented:
            found.add(str(one.argval))
    return frozenset(found)


def _loads(steps: list[dis.Instruction], name: str) -> bool:
    """Whether the one instruction puts the variable of this name on top of the stack."""
    if not steps or not steps[0].opname.startswith(("LOAD_FAST", "LOAD_DEREF")):
        return False
    loaded = steps[0].argval  # from Python 3.13 on two names may be loaded at once
    return bool(name == (loaded[-1] if isinstance(loaded, tuple) else loaded))


@functools.cache
def _is_empty(code: CodeType) -> bool:
    """Whether there is nothing in a function but `...`, `pass` or a docstring."""
    idle = ("RESUME", "NOP", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST")
    return all(one.opname in idle for one in dis.get_instructions(code))


@functools.cache
def _returned(code: CodeType) -> tuple[frozenset[object], bool]:
    """Return the constants that code returns, and whether it returns anything else as well."""
    steps = list(dis.get_instructions(code))
    at = {one.offset: one for one in steps}
    constants: set[object] = set()
    others = False
    for one, after in zip(steps, [*steps[1:], None], strict=True):
        # `return "a" if x else "b"` jumps to the one return with its first constant.
        jumps = after is not None and after.opname == "JUMP_FORWARD"
        goal = at.get(after.argval) if after is not None and jumps else after
        returned = goal is not None and goal.opname == "RETURN_VALUE"
        if one.opname == "RETURN_CONST" or (one.opname == "LOAD_CONST" and returned):
            constants.add(one.argval)
        elif returned and one.opname != "JUMP_FORWARD":
            others = True
    return frozenset(constants), others
