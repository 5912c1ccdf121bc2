"""Tells which attributes only code sets that a resumed run does not call again: hooks at the beginning of a loop.

A fit that goes on amid an epoch enters neither `fit_start` nor `epoch_start` again. What receivers of these
have set is missing then, or has its default, without a word.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple, cast

from torch import nn

from statemachine_trainer.audit.changing_code import Changed, changed_by, codes_of
from statemachine_trainer.audit.functions import function_behind
from statemachine_trainer.audit.plain_values import Seen
from statemachine_trainer.machine.board import SignalBoard
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.loop import SEPARATOR
from statemachine_trainer.machine.signals import ENTER, label_of
from statemachine_trainer.snapshot.kinds import attributes_of_class, is_users

_MAKERS: Final = ("__init__", "__new__", "__post_init__", "__setstate__", "load_state_dict")
_DEPTH: Final = 3
"""Calls of methods and functions of users that are followed."""

Key = tuple[int, str, str]
"""Identity of the holder, what the value is called, and its name there."""


class Beginning(NamedTuple):
    """Code that is called once: as a loop begins, or by a receiver with `once=True`.

    Attributes:
        called: What it is, in words.
        loop: The path of the loop that begins.
        first: The path of its first state.
        is_spent: Says whether a receiver with `once=True` was called; None for other code.
        owner: The identity of the object whose method it is; None of a function.
        codes: Its code, and the code that it calls.
        of_owner: Names of the attributes that it sets on its owner.
        of_others: Those that it sets on other objects.
    """

    called: str
    loop: str
    first: str
    is_spent: Callable[[], bool] | None
    owner: int | None
    codes: frozenset[types.CodeType]
    of_owner: frozenset[str]
    of_others: frozenset[str]

    def is_over(self, path: str | None) -> bool:
        """Whether a fit that goes on at a state does not call it again before it is used."""
        if self.is_spent is not None:
            return self.is_spent()
        return path is not None and path != self.first and path.startswith(self.loop + SEPARATOR)

    def sets(self, holder: int, name: str) -> bool:
        """Whether it sets an attribute of an object."""
        return name in (self.of_owner if holder == self.owner else self.of_others)


def beginnings(board: SignalBoard, driver: Driver) -> list[Beginning]:
    """Return what is called as loops begin, and sets attributes.

    Loops themselves are refused that set anything but their fields.
    """
    entered: dict[str, tuple[str, str]] = {}  # as these states are entered; loop and first state
    first: dict[str, tuple[str, str]] = {}
    found = []
    for path, loop in driver.loops():
        state = f"{path}{SEPARATOR}{loop.initial}"
        entered[path] = path, state
        if not any(loop.initial == _destination(one) for one in loop.transitions):
            first[state] = path, state
    for one in board.subscriptions:
        if one.once:
            is_spent = functools.partial(getattr, one, "spent")
            found.append(_beginning(one.receiver, "", "", is_spent))
            continue
        for signal in one.signals:
            state, _, kind = signal.name.partition(":")
            place = first.get(state) or (entered.get(state) if kind == ENTER else None)
            if place is not None:
                found.append(_beginning(one.receiver, *place))
    return [one for one in found if one.of_owner or one.of_others]


def _destination(declared: Any) -> object:
    return declared.get("dest") if isinstance(declared, Mapping) else [*declared, None, None][2]


def _beginning(
    receiver: Any, loop: str, first: str, is_spent: Callable[[], bool] | None = None
) -> Beginning:
    owner = getattr(receiver, "__self__", None)
    kind = None if owner is None else type(owner)
    codes = frozenset(_with_called(codes_of(receiver), function_behind(receiver), kind))
    of_owner: set[str] = set()
    of_others: set[str] = set()
    for code in codes:
        for place, name in changed_by(code).stored:
            mine = owner is not None and place == "".join(code.co_varnames[:1])
            (of_owner if mine else of_others).add(name)
        if "setattr" in code.co_names:
            names = {one for one in code.co_consts if isinstance(one, str) and one.isidentifier()}
            of_owner |= names
            of_others |= names
    return Beginning(
        label_of(receiver),
        loop,
        first,
        is_spent,
        None if owner is None else id(owner),
        codes,
        frozenset(of_owner),
        frozenset(of_others),
    )


def _with_called(
    codes: Iterable[types.CodeType], function: Any, kind: type | None
) -> Iterator[types.CodeType]:
    """Yield code, and that of the methods and the functions of users that it names."""
    space = getattr(function, "__globals__", {})
    methods = {} if kind is None else _functions_of(cast(Hashable, kind))
    seen: set[types.CodeType] = set()
    waiting = [*codes]
    for _ in range(_DEPTH):
        named: list[types.CodeType] = []
        for code in waiting:
            if code not in seen:
                seen.add(code)
                yield code
                for name in code.co_names:
                    named += codes_of(methods.get(name)) or codes_of(space.get(name))
        waiting = named


@functools.lru_cache(maxsize=512)
def _functions_of(kind: type) -> dict[str, types.FunctionType]:
    """Return the methods that a user wrote, by name; those of a base that are overridden are left out."""
    found: dict[str, types.FunctionType] = {}
    for base in kind.__mro__:
        for name, one in attributes_of_class(base).items() if is_users(base.__module__) else ():
            if isinstance(one, types.FunctionType):
                found.setdefault(name, one)
    return found


def made_once(codes: Iterable[types.CodeType]) -> frozenset[str]:
    """Return the names of what code makes when it is first needed, at random or from a batch."""
    return frozenset(name for code in codes for _, name in changed_by(code).made_once)


class SetAtBeginnings:
    """Compares what code at the beginnings of loops has set with what the script made.

    Args:
        found: That code.
        values: The values as the fit began.
        known: Identities of the objects that there were.
        made_once: Names of what code makes when it is first needed, at random or from a batch.
    """

    def __init__(
        self,
        found: list[Beginning],
        values: dict[Key, Seen],
        known: Collection[int],
        made_once: frozenset[str],
    ) -> None:
        self._found = found
        self._made_once = made_once
        names = made_once.union(*(one.of_owner | one.of_others for one in found))
        self._made = {key: seen for key, seen in values.items() if key[2] in names}
        self._known = known

    def missing(
        self,
        path: str | None,
        values: dict[Key, Seen],
        kinds: dict[Key, type],
        codes: Collection[types.CodeType],
        seen: Callable[[Any], Seen | None],
    ) -> Iterator[tuple[Key, str]]:
        """Yield what a fit that goes on here would not have, and in words what has set it.

        Args:
            path: The state at which it goes on; None if the fit has ended.
            values: The values at this moment.
            kinds: The classes of their holders.
            codes: The code of users that the fit reaches.
            seen: Reads a value.
        """
        over = [one for one in self._found if one.is_over(path)]
        if not over:
            return
        others = self._done_by_others(codes)
        by_others = {name for place, name in others.stored if place != "self"} | others.updated
        told: set[tuple[int, str]] = set()  # what has several names is told by one of them
        for key, now in values.items():
            holder, _, name = key
            by = next((one for one in over if one.sets(holder, name)), None)
            if by is None or holder not in self._known or now.is_object or now.is_time:
                continue
            if now.shown == "None" or not {name, name.lstrip("_")} & others.read:
                continue
            of_holder = self._stored_by(kinds[key]) if holder == by.owner else others.stored
            if name in by_others or ("self", name) in of_holder or (holder, name) in told:
                continue
            if name in others.in_place and key in self._made:
                continue  # it goes on from what it was: that is told where it has changed
            if not self._is_as_made(key, now, kinds[key], seen):
                told.add((holder, name))
                yield key, by.called

    def made_when_needed(
        self, values: dict[Key, Seen], codes: Collection[types.CodeType]
    ) -> Iterator[Key]:
        """Yield what a step has made because it was not there yet, and a resumed run would make otherwise.

        What follows from shapes alone, such as a mask, is made the same again.

        Args:
            values: The values at this moment.
            codes: The code of users that the fit reaches.
        """
        changed = [(one, changed_by(one)) for one in codes] if self._made_once else []
        elsewhere: set[str] = set()  # what is set, or changed, by other code too
        for code, one in changed:
            elsewhere |= one.updated | one.in_place
            if code.co_name not in _MAKERS:
                elsewhere |= {name for _, name in one.stored - one.made_once}
        names = self._made_once - elsewhere
        for key, now in values.items():
            if key[2] not in names or key[0] not in self._known or now.is_object or now.is_time:
                continue
            was = self._made.get(key)
            if now.shown != "None" and (was is None or was.shown == "None"):
                yield key

    def _done_by_others(self, codes: Iterable[types.CodeType]) -> Changed:
        """Return the names that other code reads, sets and changes."""
        own = frozenset().union(*(one.codes for one in self._found))
        others = [one for one in codes if one not in own and one.co_name not in _MAKERS]
        called = {name for one in others for name in one.co_names}
        others += [one for one in own if one.co_name in called]  # not only by what is called once
        return Changed().with_those_of(map(changed_by, others))

    def _stored_by(self, kind: type) -> frozenset[tuple[str, str]]:
        methods = _functions_of(cast(Hashable, kind)).values()
        return self._done_by_others([one.__code__ for one in methods]).stored

    def _is_as_made(
        self, key: Key, now: Seen, kind: type, seen: Callable[[Any], Seen | None]
    ) -> bool:
        """Whether the script makes the same, or the class has it."""
        was = self._made.get(key)
        if was is not None:  # settings of libraries are compared elsewhere
            of_library = issubclass(kind, nn.Module) and not is_users(kind.__module__)
            return of_library or was.content == now.content
        bases = [attributes_of_class(one) for one in kind.__mro__]
        defaults = [seen(inside[key[2]]) for inside in bases if key[2] in inside]
        return bool(defaults) and defaults[0] is not None and defaults[0].content == now.content
