"""Reads the declaration of a loop class: its transitions, its states, the events of each state."""

from __future__ import annotations

import enum
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, Literal, TypeVar

from statemachine_trainer.machine.errors import MalformedTransition, UndeclaredEvents
from statemachine_trainer.machine.keywords import refuses_unknown

F = TypeVar("F", bound=Callable[..., Any])
Declared = Sequence[Any] | Mapping[str, Any]

ANY_STATE: Final = "*"
SAME_STATE: Final = "="
_KEYS: Final = ("trigger", "source", "dest", "conditions", "unless", "actions")
_ERROR_KEYS: Final = ("error", *_KEYS[1:])


@dataclass(frozen=True, slots=True)
class Guard:
    """A condition of a transition: name of a method of the loop, or a callable."""

    test: str | Callable[[], bool]
    expected: bool = True

    def __str__(self) -> str:
        name = self.test if isinstance(self.test, str) else getattr(self.test, "__name__", "guard")
        return name if self.expected else f"not {name}"


@dataclass(frozen=True, slots=True)
class Action:
    """Something that is done on the way along a transition: name of a method of the loop, or a callable."""

    work: str | Callable[[], object]

    def __str__(self) -> str:
        return self.work if isinstance(self.work, str) else getattr(self.work, "__name__", "action")


@dataclass(frozen=True, slots=True)
class Transition:
    """One declared transition between two states of one loop (`dest` None: an internal one)."""

    event: str
    source: str
    dest: str | None
    guards: tuple[Guard, ...] = ()
    implied: bool = False
    """Whether the source comes from `"*"` and was not named."""
    error: type[Exception] | None = None
    """The type of the exceptions that take it; None for a transition on an event."""
    actions: tuple[Action, ...] = ()


def plain_text(name: Any) -> Any:
    """Convert a member of a `StrEnum` to plain text; return anything else unchanged.

    The library `transitions` treats members of an enum differently from strings.
    """
    return str.__str__(name) if isinstance(name, str) else name


@refuses_unknown
def transient(state: F) -> F:
    """Mark a state method: something that cannot be saved exists at the boundary before it.

    A snapshot asked for at that boundary is taken at the next one that is not transient.
    """
    state.__transient__ = True  # type: ignore[attr-defined]
    return state


def is_transient(method: Callable[..., Any]) -> bool:
    """Return whether a state method, or one that it overrides, is marked as `transient`.

    What exists at the boundary comes from the states before it, so an override does not change it.
    """
    owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    versions = [method, *(vars(cls).get(name) for cls in type(owner).__mro__)]
    return any(getattr(version, "__transient__", False) is True for version in versions)


def read_transitions(
    owner: type, declared: Iterable[Declared], states: Sequence[str]
) -> list[Transition]:
    """Normalize the `transitions` of a loop class.

    Args:
        owner: The loop class, for messages.
        declared: Lists `[event, source, dest]` (then `conditions`, `unless`, `actions`) or dicts with
            the keys `trigger`, `source`, `dest`, `conditions`, `unless`, `actions`: the convention of the
            library `transitions`, with the actions of statecharts. An event may be a list of events, a
            source a list of states or `"*"`, a dest `"="` (the source) or None (an internal transition).
        states: The states that `"*"` stands for.

    Raises:
        MalformedTransition: An entry has none of these forms.
    """
    flat = _is_one_transition(declared)
    if flat or isinstance(declared, str | Mapping) or not isinstance(declared, Iterable):
        inner = f"[{list(declared)}]" if flat else '[["event", "source", "dest"], ...]'
        raise MalformedTransition(
            f"{owner.__name__}.transitions must be a list of transitions: `transitions = {inner}`."
        )
    return [one for entry in declared for one in _expand(owner, entry, states)]


def read_errors(
    owner: type, declared: Iterable[Declared], states: Sequence[str]
) -> list[Transition]:
    """Normalize the `errors` of a loop class: transitions that an exception takes, by its type.

    The name of the type is the event of such a transition.

    Args:
        owner: The loop class, for messages.
        declared: Lists `[type, source, dest]` (then `conditions`, `unless`, `actions`) or dicts with
            the keys `error`, `source`, `dest`, `conditions`, `unless`, `actions`. A type may be a list
            of types. Sources and dests are as in `transitions`, but `"*"` leaves out the dest: a
            state that recovers does not recover from itself unless it is named.
        states: The states that `"*"` stands for.

    Raises:
        MalformedTransition: An entry has none of these forms, or the type is not that of errors.
    """
    listed = isinstance(declared, Iterable) and not isinstance(declared, str | Mapping)
    first = next(iter(declared), None) if listed else declared
    if not listed or isinstance(first, type | str):
        raise MalformedTransition(
            f"{owner.__name__}.errors must be a list of transitions for types of exceptions: "
            '`errors = [[ValueError, "source", "dest"]]`.'
        )
    found = []
    for entry in declared:
        where = f"{owner.__name__}.errors, entry {entry!r}"
        kinds, *others = _parts(where, entry, _ERROR_KEYS)
        for kind in _several(where, kinds, "types of exceptions"):
            _check_error_type(where, kind)
            for one in _expand(owner, [kind.__name__, *others], states, where):
                if not (one.implied and one.dest == one.source and others[1] != SAME_STATE):
                    found.append(replace(one, error=kind))
    return found


def _several(where: str, given: Any, what: str) -> Sequence[Any]:
    """Return the parts of a list, or the only one.

    Raises:
        MalformedTransition: The list is empty, or names something twice.
    """
    if isinstance(given, tuple | set | frozenset):
        raise MalformedTransition(f"{where}: write several {what} as a list: {[*given]}.")
    if not isinstance(given, list):
        return (given,)
    if not given:
        raise MalformedTransition(f"{where}: the list of {what} is empty.")
    if twice := [one for index, one in enumerate(given) if one in given[:index]]:
        raise MalformedTransition(f"{where}: {twice[0]!r} is in the list of {what} twice.")
    return given


def _check_error_type(where: str, kind: object) -> None:
    if not isinstance(kind, type) or not issubclass(kind, BaseException):
        hint = "the class itself, without quotes" if isinstance(kind, str) else "a class"
        raise MalformedTransition(f"{where}: the first part is the type of an exception, {hint}.")
    if not issubclass(kind, Exception):
        raise MalformedTransition(
            f"{where}: {kind.__name__} ends programs, and is no error. Use a type that derives from "
            "Exception; a run that is to end in an orderly way takes the posted event 'stop'."
        )
    if issubclass(kind, StopIteration):
        raise MalformedTransition(
            f"{where}: a {kind.__name__} never steers a loop. Catch it in the state, and let the "
            "state answer with an event."
        )


def _is_one_transition(declared: object) -> bool:
    """Whether the brackets around the only transition were forgotten."""
    return (
        isinstance(declared, list | tuple)
        and bool(declared)
        and all(isinstance(part, str) for part in declared)
    )


def _expand(
    owner: type, entry: Declared, states: Sequence[str], where: str = ""
) -> Iterable[Transition]:
    if _is_usual(entry) and not where:
        event, source, dest = entry
        yield Transition(event, source, source if dest == SAME_STATE else dest, ())
        return
    where = where or f"{owner.__name__}.transitions, entry {entry!r}"
    events, source, dest, conditions, unless, actions = _parts(where, entry)
    events = [plain_text(one) for one in _several(where, events, "events")]
    source, dest = plain_text(source), plain_text(dest)
    for one in (*events, dest, *(source if isinstance(source, list | tuple) else (source,))):
        _refuse_enum(one, where, MalformedTransition)
    every = source == ANY_STATE
    sources = states if every else [source] if isinstance(source, str) else source
    if not isinstance(sources, Sequence) or not (sources or every):
        raise MalformedTransition(f"{where}: the source is a state, a list of states or '*'.")
    sources = [plain_text(one) for one in sources]
    texts = [*events, *sources] + ([] if dest is None else [dest])
    if not all(isinstance(text, str) for text in texts):
        raise MalformedTransition(
            f"{where}: event, source and dest must be names of an event and of states."
        )
    if dest == ANY_STATE:
        raise MalformedTransition(f"{where}: '*' cannot be a dest; '=' is the source itself.")
    guards = (
        *_guards(where, conditions, expected=True),
        *_guards(where, unless, expected=False),
    )
    done = tuple(_actions(where, actions))
    for event in events:
        for one in sources:
            to = one if dest == SAME_STATE else dest
            yield Transition(event, one, to, guards, every, actions=done)


def _is_usual(entry: Any) -> bool:
    """Whether an entry is nothing but the names of an event and of two states; most are, and quick to read."""
    return (
        type(entry) in (list, tuple)
        and len(entry) == 3
        and type(entry[0]) is type(entry[1]) is type(entry[2]) is str
        and entry[1] != ANY_STATE
        and entry[2] != ANY_STATE
    )


def _refuse_enum(name: object, where: str, error: type[Exception]) -> None:
    if isinstance(name, enum.Enum) and not isinstance(name, str):
        kind = type(name).__name__
        raise error(
            f"{where}: {kind}.{name.name} is a member of an enum that is no text. Names of states and "
            f"events are texts: derive {kind} from `enum.StrEnum`."
        )


def _parts(where: str, entry: Declared, keys: Sequence[str] = _KEYS) -> Sequence[Any]:
    """Return event (or type of error), source, dest, conditions, unless and actions of an entry."""
    form = "[type, source, dest]" if keys is _ERROR_KEYS else "[event, source, dest]"
    if not isinstance(entry, list | tuple) and isinstance(entry, Mapping):
        if extra := sorted(set(entry) - set(keys)):
            raise MalformedTransition(
                f"{where}: unknown key {extra[0]!r}. Known are {', '.join(keys)}. What is to be done on "
                "the way, between the exit of the source and the entry of the dest, goes into "
                "`actions`; what only listens subscribes to the signal of the transition."
            )
        if missing := [key for key in keys[:3] if key not in entry]:
            raise MalformedTransition(f"{where}: the key {missing[0]!r} is missing.")
        return [entry.get(key) for key in keys]
    if isinstance(entry, str) or not isinstance(entry, Sequence):
        raise MalformedTransition(f"{where}: write {form} or a dict.")
    if not 3 <= len(entry) <= len(keys):
        raise MalformedTransition(f"{where}: write {form}, then conditions, unless and actions.")
    return [*entry, None, None, None][: len(keys)]


def _guards(where: str, tests: Any, *, expected: bool) -> Iterable[Guard]:
    for test in () if tests is None else tests if isinstance(tests, list | tuple) else (tests,):
        if not isinstance(test, str) and not callable(test):
            raise MalformedTransition(
                f"{where}: a condition is the name of a method or a callable."
            )
        yield Guard(plain_text(test), expected)


def _actions(where: str, given: Any) -> Iterable[Action]:
    for one in () if given is None else given if isinstance(given, list | tuple) else (given,):
        if not isinstance(one, str) and not callable(one):
            raise MalformedTransition(f"{where}: an action is the name of a method or a callable.")
        yield Action(plain_text(one))


def declared_names(declared: Sequence[Any], initial: str | None) -> list[str]:
    """Return the names of states in `transitions`, the initial one first, without checking them."""
    try:  # They are asked for at each walk through a tree.
        usual = tuple([tuple(one) for one in declared if type(one) in (list, tuple)])
        if len(usual) == len(declared):
            return [*_names_in(usual, initial)]
    except TypeError:  # something in it is no key, such as a list of sources
        pass
    return _names_in.__wrapped__(declared, initial)


@lru_cache(maxsize=256)
def _names_in(declared: Iterable[Any], initial: str | None) -> list[str]:
    names: dict[str, None] = {plain_text(initial): None} if isinstance(initial, str) else {}
    for entry in declared if isinstance(declared, Iterable) else ():
        if isinstance(entry, list | tuple) and len(entry) >= 3:  # nearly all are; quick to tell
            source, dest = entry[1], entry[2]
        elif isinstance(entry, Mapping):
            source, dest = entry.get("source"), entry.get("dest")
        elif isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) >= 3:
            source, dest = entry[1], entry[2]
        else:
            continue
        for name in (*(source if isinstance(source, list | tuple) else [source]), dest):
            if isinstance(name, str) and name not in (ANY_STATE, SAME_STATE):
                names[plain_text(name)] = None
    return list(names)


@dataclass(frozen=True, slots=True)
class Answers:
    """The possible answers of a state method: events, and None if it may rest."""

    events: tuple[str, ...]
    may_rest: bool = False


def read_answers(owner: type, name: str, path: str) -> Answers:
    """Read the events of a state method from its return annotation.

    An override without an annotation keeps that of the method it overrides.

    Raises:
        UndeclaredEvents: The annotation is missing, or is not made of `Literal` strings and None.
    """
    for cls in owner.__mro__:
        method = cls.__dict__.get(name)
        function = getattr(method, "__func__", method)
        if function is not None and "return" in getattr(function, "__annotations__", {}):
            annotation = _evaluate(function, path)
            return _from_annotation(annotation, path)
    raise UndeclaredEvents(
        f"State {path!r} ({owner.__name__}.{name}) does not say which events it answers with. "
        f'Annotate it: `def {name}(self) -> Literal["done"]: ...`'
    )


def _evaluate(function: Callable[..., Any], path: str) -> Any:
    function = inspect.unwrap(function)
    annotation = function.__annotations__["return"]
    if not isinstance(annotation, str):
        return annotation
    scope = getattr(function, "__globals__", {})
    try:
        return eval(annotation, scope, _Names(scope))
    except Exception as error:
        raise UndeclaredEvents(
            f"The return annotation {annotation!r} of state {path!r} cannot be read ({error}). "
            f"{_about(annotation)}"
        ) from error


def _about(annotation: str) -> str:
    if annotation.isidentifier():
        return (
            f'If it is the event itself, write `-> Literal["{annotation}"]`; a name has to exist '
            "at run time in its module."
        )
    return "Use names that exist at run time in its module, and events in quotes."


class _Names(dict[str, Any]):
    """Names for an annotation: those of its module, then those of `typing`.

    `Literal` is often imported for type checkers only.
    """

    def __missing__(self, name: str) -> Any:
        return vars(typing)[name]


def _from_annotation(annotation: Any, path: str) -> Answers:
    events: dict[str, None] = {}
    may_rest = False
    todo = [annotation]
    while todo:
        part = todo.pop(0)
        if part is None or part is type(None):
            may_rest = True
        elif typing.get_origin(part) is Literal:
            todo[:0] = typing.get_args(part)
        elif isinstance(part, str):
            events[plain_text(part)] = None
        elif typing.get_origin(part) in (typing.Union, types.UnionType):
            todo[:0] = typing.get_args(part)
        elif hasattr(part, "__value__"):  # an alias made by the `type` statement of Python 3.12
            todo.insert(0, part.__value__)
        else:
            _refuse_enum(part, f"The return annotation of state {path!r}", UndeclaredEvents)
            raise UndeclaredEvents(
                f"The return annotation of state {path!r} holds {part!r}. Write the events it may "
                'answer with as `Literal["one", "other"]` (with `| None` if it may rest).'
            )
    if not events:
        raise UndeclaredEvents(
            f"State {path!r} declares no event to answer with, so it could never be left. Write "
            'what it returns when it is done: `-> Literal["done"]` and `return "done"`.'
        )
    return Answers(tuple(events), may_rest)
