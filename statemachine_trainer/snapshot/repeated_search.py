"""A search that is done at each checkpoint. Where only values have changed, it follows the way of the last one.

The way is the list of the objects that were visited, in their order. With each of them stands what decided where the
search went on from there (`object_contents.py`). To follow the way is to read that again, from the starting points on.
If all is as it was, the search would find the same again, and is not done. If anything differs, it is done anew, so
that nothing new can be missed. No object is kept from one search to the next, so that none lives longer for it.
"""

from __future__ import annotations

import contextvars
import operator
import random
import types
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, cast

from torch import nn

from statemachine_trainer.snapshot.found import EMPTY, OF_MODULES, TENSORS, Place, Unheld
from statemachine_trainer.snapshot.generators import GENERATORS, Generator, identity_of, is_global
from statemachine_trainer.snapshot.kinds import ATOMS, behind, how_to_visit, is_users
from statemachine_trainer.snapshot.object_contents import (
    NOTHING,
    Contents,
    Reader,
    is_bare,
    reader_of,
)
from statemachine_trainer.snapshot.sampling import Sampling
from statemachine_trainer.snapshot.search import Search

_MOST: Final = 5_000
"""Objects on a way that is kept."""

_PAUSE: Final = 8
"""Searches after which a way is kept again, where the last ways could not be followed."""

_PLAIN: Final = ATOMS - TENSORS - {types.ModuleType, types.CodeType}
"""Types of values that lead nowhere: a value of one of these may become one of another."""

_KNOWN: Final = (random.Random, random.SystemRandom)

Note = tuple[str, object, str, object]
"""A named value, as `Search` notes it: path of the holder, the holder, the name, the value."""


@dataclass
class SearchResult:
    """What one search found, or would have found; the first three as in `Search`.

    Attributes:
        places: The generators by path.
        unheld: What no checkpoint can hold.
        modules: The modules by path.
        notes: The named values of what users wrote.
        visits: The objects that were visited, with their paths; not all of them if `same`.
        same: Whether the way of the last search was followed: paths, holders and names of the notes are the
            same as then, and only values may be others.
    """

    places: Mapping[str, Place]
    unheld: list[Unheld]
    modules: Mapping[str, nn.Module]
    notes: list[Note] = field(default_factory=list)
    visits: list[tuple[str, object]] = field(default_factory=list)
    same: bool = False


class RepeatedSearch:
    """Searches from the same starting points again and again.

    Args:
        noting: Whether named values are noted, as with `quiet` of `Search`.
        visiting: Which objects are among the `visits` of a result that is `same`.
    """

    def __init__(
        self, *, noting: bool = False, visiting: Callable[[object], bool] = lambda _: False
    ) -> None:
        self._noting, self._visiting = noting, visiting
        self._way: _Way | None = None
        self._left = 0  # searches after which no way is kept
        self._failed = False  # the last way that was kept could not be followed once

    def search(self, roots: Mapping[str, object]) -> SearchResult:
        """Search from these objects, by the beginning of their paths."""
        if self._way is not None:
            found = self._way.follow(roots)
            if found is not None:
                self._failed = False
                return found
            self._left = _PAUSE if self._failed else 0
            self._failed, self._way = True, None
        search, found, numbers = _searched(roots, noting=self._noting)
        if self._left:
            self._left -= 1
        else:
            self._way = _way_of(roots, search, found, numbers, self._visiting)
            if self._way is None:
                self._left = _PAUSE
        return found


def search_once(roots: Mapping[str, object]) -> tuple[Search, SearchResult]:
    """Search once, as a `RepeatedSearch` that notes values; no way is kept."""
    search, found, _ = _searched(roots, noting=True)
    return search, found


def _searched(
    roots: Mapping[str, object], *, noting: bool
) -> tuple[Search, SearchResult, list[int]]:
    """Search; return the search, what it found, and of each note how many objects had been visited before."""
    notes: list[Note] = []
    numbers: list[int] = []
    visits: list[tuple[str, object]] = []

    def note(*named: Any) -> None:
        notes.append(named)
        numbers.append(len(visits))

    search = Search(
        roots,
        notice=note if noting else None,
        visit=lambda path, thing: visits.append((path, thing)),
        quiet=True,
    )
    found = SearchResult(search.places, search.unheld, search.modules, notes, visits)
    return search, found, numbers


class _Stop(NamedTuple):
    """One object on the way.

    Attributes:
        kind: Its class.
        read: Reads it.
        identity: Its identity; None if it may be any object of its class that leads nowhere too.
        names, also, fixed: What was read; see `Contents`.
        types: Of the values.
        first: The values that are visited later: place among the values, number of the stop.
        again: Values that had been visited already, likewise.
        plain: Places of containers in which nothing is visited, and what reads them.
        others: Whether there is any of the following.
        tensors: Places of tensors without hooks.
        generators: Places of generators: the generator, its identity, whether it is a global one.
        bases: Places of classes that were looked at as the base of another one.
        notes: Path, holder if that is not the object itself, name, and the place of the value.
    """

    kind: type
    read: Reader
    identity: int | None
    names: list[Any]
    also: tuple[Any, ...]
    fixed: tuple[Any, ...]
    types: list[type]
    first: list[tuple[int, int]]
    again: list[tuple[int, int]]
    plain: list[tuple[int, Reader]]
    others: bool
    tensors: list[int]
    generators: list[tuple[int, Generator, int, bool]]
    bases: list[tuple[int, object]]
    notes: list[tuple[str, object, str, int]]


class _Way:
    """The way of one search: the first stop stands for all its starting points.

    Args:
        stops: The stops; None for objects at which there is nothing to do.
        search: The search.
        modules: The number of the stop of each module that was found, by path.
        visits: The numbers of the stops that are told, with their paths.
    """

    def __init__(
        self,
        stops: list[_Stop | None],
        search: Search,
        modules: dict[str, int],
        visits: list[tuple[str, int]],
    ) -> None:
        self._stops = stops
        self._places, self._unheld = search.places, search.unheld
        self._modules, self._visits = modules, visits

    def follow(self, roots: Mapping[str, object]) -> SearchResult | None:
        """Go the way again; return None where something is not as it was."""
        objects: list[Any] = [None] * len(self._stops)
        objects[0] = roots
        notes: list[Note] = []
        sampling = Sampling()
        looked_at: dict[int, Any] = {}  # containers in which nothing is visited: each is read once
        try:
            for thing, stop in zip(objects, self._stops, strict=True):
                if stop is None:
                    continue
                (
                    kind,
                    read,
                    identity,
                    names,
                    also,
                    fixed,
                    kinds_then,
                    first,
                    again,
                    plain,
                    others,
                    *_,
                ) = stop
                if type(thing) is not kind or (identity is not None and id(thing) != identity):
                    return None
                found = read(thing, sampling)
                if found is None or found[0] != names or found[2] != also:
                    return None
                if fixed and not _are_same(found[3], fixed):
                    return None
                values = found[1]
                kinds = [*map(type, values)]
                if kinds != kinds_then and not _leads_the_same_way(kinds_then, kinds):
                    return None
                for place, number in first:
                    objects[number] = values[place]
                for place, number in again:
                    if values[place] is not objects[number]:
                        return None
                for place, read_inside in plain:
                    if (value := values[place]) and id(value) not in looked_at:
                        looked_at[id(value)] = value
                        inside = read_inside(value, sampling)
                        if inside is None or inside[1]:
                            return None
                if others and not _is_as_before(stop, values):
                    return None
                for path, holder, name, place in stop.notes:
                    value = values[place]
                    if type(value) is contextvars.ContextVar:
                        value = behind(value)
                    notes.append((path, thing if holder is None else holder, name, value))
        except Exception:  # another thread changed it meanwhile; or a metaclass may do anything
            return None
        if not sampling.is_whole:  # a search looks at the containers in another order
            return None
        return SearchResult(
            self._places,
            self._unheld,
            {path: objects[number] for path, number in self._modules.items()},
            notes,
            [(path, objects[number]) for path, number in self._visits],
            same=True,
        )


def _of_roots(roots: Any, _: Sampling) -> Contents:
    return [*roots], [*roots.values()], (), ()


def _are_same(some: tuple[Any, ...], others: tuple[Any, ...]) -> bool:
    return len(some) == len(others) and all(map(operator.is_, some, others))


def _is_as_before(stop: _Stop, values: list[Any]) -> bool:
    """Whether tensors, bases of classes and generators are as they were."""
    if not all(is_bare(values[place]) for place in stop.tensors):
        return False
    if not all(values[place] is base for place, base in stop.bases):
        return False
    return all(
        values[place] is generator
        and identity_of(generator) == identity
        and is_global(generator) == everywhere
        for place, generator, identity, everywhere in stop.generators
    )


def _leads_the_same_way(was: list[type], now: list[type]) -> bool:
    return len(was) == len(now) and all(
        one is other or (one in _PLAIN and other in _PLAIN)
        for one, other in zip(was, now, strict=True)
    )


def _way_of(
    roots: Mapping[str, object],
    search: Search,
    found: SearchResult,
    numbers: list[int],
    visiting: Callable[[object], bool],
) -> _Way | None:
    """Return the way of a search; None if one would have to look anew at something each time."""
    visits = found.visits
    if not search.complete or not search.sampling.is_whole or len(visits) > _MOST:
        return None
    if search.is_odd:
        return None
    making = _Making(visits)
    noted: dict[int, list[Note]] = {}
    for number, note in zip(numbers, found.notes, strict=True):
        noted.setdefault(number, []).append(note)
    stops: list[_Stop | None] = []
    for number, thing in enumerate([roots, *(thing for _, thing in visits)]):
        if number in making.plain:
            stops.append(None)
            continue
        read = reader_of(cast(Hashable, type(thing))) if number else _of_roots
        try:
            inside = read(thing, making.sampling)
        except RuntimeError:  # another thread changed it meanwhile
            return None
        if inside is None:
            return None
        stop = making.stop(number, thing, read, inside, noted.get(number, []))
        if stop is None:
            return None
        stops.append(stop)
    if len(making.reached) != len(visits):  # it was reached in a way that is not known here
        return None
    modules = {path: making.numbers[id(module)] for path, module in search.modules.items()}
    told = [(path, number) for number, (path, thing) in enumerate(visits, 1) if visiting(thing)]
    return _Way(stops, search, modules, told)


class _Making:
    """Makes the stops of one way.

    Attributes:
        numbers: Of the stops, by the identity of the object.
        reached: The numbers of those that are reached by the stops made so far.
        plain: The numbers of those at which there is nothing to do, since another stop looks at them.
        sampling: What has been looked at in containers so far.
    """

    def __init__(self, visits: list[tuple[str, object]]) -> None:
        self.numbers = {id(thing): number for number, (_, thing) in enumerate(visits, 1)}
        self.reached: set[int] = set()
        self.plain: set[int] = set()
        self._begun: set[int] = set()  # to which a value has led
        self.sampling = Sampling()
        self._bases = {
            id(base)
            for _, thing in visits
            if issubclass(type(thing), type)
            for base in cast(type, thing).__mro__
            if is_users(base.__module__)
        }

    def stop(
        self, number: int, thing: object, read: Reader, found: Contents, notes: list[Note]
    ) -> _Stop | None:
        """Return one stop; None if it is not known where something leads from there."""
        names, values, also, fixed = found
        kind = type(thing)
        stop = _Stop(
            kind, read, id(thing), names, also, fixed, [*map(type, values)],
            [], [], [], False, [], [], [], [],
        )  # fmt: skip
        is_module = issubclass(kind, nn.Module)
        if not {*map(type, names)} <= {str, tuple}:  # that may compare as it likes
            return None
        for place, value in enumerate(values):
            known = is_module and place < len(names) and names[place] in OF_MODULES
            if not known and not self._leads_on(stop, place, value):
                return None
        begin = 0
        for path, holder, name, value in notes:
            at = _place_of(name, value, found, begin)
            if at is None:
                return None
            stop.notes.append((path, None if holder is thing else holder, name, at))
            begin = at + 1
        others = bool(stop.tensors or stop.generators or stop.bases)
        leads_on = stop.first or stop.again or stop.notes or others or also or is_module
        return stop._replace(
            # The starting points are in another dict each time.
            identity=id(thing) if leads_on and number else None,
            others=others,
        )

    def _leads_on(self, stop: _Stop, place: int, value: Any) -> bool:
        """Note where a value leads; return False if that is not known."""
        kind, number = type(value), self.numbers.get(id(value))
        if kind in ATOMS and number is not None and number not in self.reached:
            self.reached.add(number)  # as a starting point, or behind an attribute of a class
            self.plain.add(number)
        if value is NOTHING or kind in _PLAIN:
            pass
        elif issubclass(kind, GENERATORS):
            if issubclass(kind, random.Random) and kind not in _KNOWN:
                return False  # it may have attributes
            stop.generators.append((place, value, identity_of(value), is_global(value)))
        elif kind in TENSORS:
            stop.tensors.append(place)
            return is_bare(value)
        elif kind in ATOMS:
            pass
        elif number is not None:
            self._visited(stop, place, value, number)
        elif kind in EMPTY and not value:
            stop.plain.append((place, reader_of(cast(Hashable, kind))))
        elif id(value) in self._bases:
            stop.bases.append((place, value))
        else:
            return False
        return True

    def _visited(self, stop: _Stop, place: int, value: Any, number: int) -> None:
        """Note a value that the search has visited."""
        kind = type(value)
        if number not in self.reached and not how_to_visit(cast(Hashable, kind))[0]:
            self.plain.add(number)
        elif number not in self.reached and kind in EMPTY:
            inside = reader_of(cast(Hashable, kind))(value, Sampling())
            if inside is not None and not inside[1]:
                self.plain.add(number)
        self.reached.add(number)
        if number not in self.plain:
            pairs = stop.again if number in self._begun else stop.first
            pairs.append((place, number))
            self._begun.add(number)
        elif kind in EMPTY:
            stop.plain.append((place, reader_of(cast(Hashable, kind))))


def _place_of(name: str, value: object, found: Contents, begin: int) -> int | None:
    """Return where a value that was noted stands among all that lie in an object, from some place on."""
    names, values, _, _ = found
    for place in range(begin, len(names)):
        if names[place] == name and behind(values[place]) is value:
            return place
    return None
