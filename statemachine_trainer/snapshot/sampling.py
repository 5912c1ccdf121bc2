"""Chooses which elements of containers a search visits, so that large data sets cost little.

Types are looked at for many elements at once, without a Python call for each. Where all are plain
values, or plain sequences or dicts of those, nothing is visited. Of others a few of each type are,
and those further objects that have an attribute of a type which none of the visited ones has.
"""

from __future__ import annotations

import gc
import itertools
import operator
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator
from itertools import chain, compress, islice, repeat
from typing import Any, Final, NamedTuple

from statemachine_trainer.snapshot.found import KEYS, RawStep, Way
from statemachine_trainer.snapshot.kinds import ATOMS, HEAP, how_to_visit

LARGE: Final = 400
"""Elements above which a container is not visited whole."""

ALIKE: Final = 100
"""Elements of one type that are visited in a large container."""

OF_ONE_TYPE: Final = 1000
"""Elements of one type that are visited in all containers together."""

TYPED: Final = 200_000
"""Elements of one container whose types are looked at."""

INSIDE: Final = 20_000
"""Elements of one container that are looked into at once, where all are sequences or all are dicts.

Elements of a set lie far apart in memory, so that of these no more types are looked at either.
"""

ALL_TYPED: Final = 3 * TYPED
"""Elements whose types are looked at in all containers together; of further ones the first `LARGE` each."""

BEYOND: Final = 50_000
"""Objects that are not visited and whose attributes have their types looked at, in all containers together."""

Element = tuple[Any, Any]
"""An element, and what tells where it lies."""


class Group(NamedTuple):
    """The elements of one container.

    Attributes:
        path: Path of the container.
        size: How many there are.
        items: Iterates over them.
        at: Returns the path of an element, and the step to it, of what tells where it lies.
        kinds: The types that are to be visited.
        way: What holds for all of them.
        elements: Iterates over the elements alone, in C.
    """

    path: str
    size: int
    items: Callable[[], Iterator[Element]]
    at: Callable[[Any], tuple[str, RawStep]]
    kinds: set[type]
    way: Way
    elements: Callable[[], Iterable[Any]]


class Sampling:
    """What one search has looked at in containers, and what it has passed over.

    Attributes:
        typed: Elements whose types were looked at.
        leads: Types of the elements in which a generator was found.
        partly: Large containers that were not visited whole: path and number of elements.
    """

    def __init__(self) -> None:
        self.typed = 0
        self.leads: set[type] = set()
        self.partly: dict[str, int] = {}
        self._visited: Counter[type] = Counter()
        self._rest: list[tuple[Group, set[type]]] = []
        self._beyond: list[tuple[Group, set[type]]] = []  # whose further objects were not looked at
        self._left_beyond = BEYOND
        self._samples: dict[type, list[Any]] = defaultdict(list)
        self._known: dict[type, set[type]] = {}

    @property
    def is_whole(self) -> bool:
        """Whether all elements were visited that are no plain values, and no type was left out to save time."""
        return not (self._rest or self.partly) and self.typed < ALL_TYPED

    def kinds(self, count: int, elements: Callable[[], Iterable[Any]], most: int) -> set[type]:
        """Return the types of the elements that are to be visited; none if all of them are plain.

        Args:
            count: How many elements there are.
            elements: Iterates over them, in C.
            most: Of so many the type is looked at.
        """
        most = min(count, most, max(LARGE, ALL_TYPED - self.typed))
        self.typed += most
        try:
            kinds = set(map(type, islice(elements(), most)))
            below: Iterable[Any] | None = None
            if kinds and kinds <= _SEQUENCES:
                below = chain.from_iterable(islice(elements(), INSIDE))
            elif kinds == _DICTS:
                below = chain.from_iterable(map(dict.values, islice(elements(), INSIDE)))
            if below is not None and set(map(type, islice(below, TYPED))) <= ATOMS:
                return set()
            return kinds - ATOMS
        except RuntimeError:  # another thread changed it meanwhile
            return set()

    def values_of(
        self, mapping: dict[Any, Any], path: str, way: Way, seen: Container[int]
    ) -> Group | None:
        """Return the values of a dict; None if all are plain.

        Args:
            mapping: The dict.
            path: Its path.
            way: What holds below it.
            seen: The identities of the objects that were visited.
        """
        size = dict.__len__(mapping)
        kinds = self.kinds(size, lambda: dict.values(mapping), TYPED)
        if not kinds:
            return None

        def items() -> Iterator[Element]:
            return ((one[1][1], one) for one in enumerate(copied(dict.items(mapping))))

        def at(mark: Any) -> tuple[str, RawStep]:
            place, (key, _) = mark
            if type(key) in KEYS and not (type(key) is int and key in seen):
                return f"{path}[{key!r}]", (path, "item", key)
            # The key means nothing in another process: an object, or its `id`.
            return f"{path}[#{place}]", (path, "other", place)

        return Group(path, size, items, at, kinds, way, lambda: dict.values(mapping))

    def elements_of(self, sequence: Any, base: Any, path: str, way: Way) -> Group | None:
        """Return the elements of a list, a tuple or a deque; None if all are plain.

        Args:
            sequence: Any of these, or of a class of users that is one.
            base: Which of them: its own methods are called, never those of users.
            path: Its path.
            way: What holds below it.
        """
        size = base.__len__(sequence)
        kinds = self.kinds(size, lambda: base.__iter__(sequence), TYPED)
        if not kinds:
            return None
        how = "other" if base is tuple else "item"

        def items() -> Iterator[Element]:
            return zip(copied(base.__iter__(sequence)), itertools.count(), strict=False)

        def at(mark: Any) -> tuple[str, RawStep]:
            return f"{path}[{mark}]", (path, how, mark)

        return Group(path, size, items, at, kinds, way, lambda: base.__iter__(sequence))

    def members_of(self, thing: Any, base: Any, path: str, way: Way) -> Group | None:
        """Return the elements of a set, which have no order; None if all are plain.

        Args: as `elements_of`
        """
        size = base.__len__(thing)
        kinds = self.kinds(size, lambda: base.__iter__(thing), INSIDE)
        if not kinds:
            return None
        below = way if size == 1 else way._replace(ordered=False)

        def items() -> Iterator[Element]:
            return ((one, None) for one in copied(base.__iter__(thing)))

        def at(_: Any) -> tuple[str, RawStep]:
            return f"{path}{{...}}", (path, "other", None)

        return Group(path, size, items, at, kinds, below, lambda: base.__iter__(thing))

    def chosen(self, group: Group) -> Iterator[Element]:
        """Yield the elements to visit."""
        large = group.size > LARGE
        most = ALIKE if large else OF_ONE_TYPE
        left = {one: min(most, OF_ONE_TYPE - self._visited[one]) for one in group.kinds}
        passed_over = {one for one in left if left[one] <= 0}
        open_still = len(left) - len(passed_over)
        for element in islice(group.items(), TYPED) if open_still else ():
            kind = type(element[0])
            if kind not in left:
                continue
            if left[kind] <= 0:
                passed_over.add(kind)
                continue
            yield element
            self._visited[kind] += 1
            self._samples[kind].append(element[0])
            left[kind] -= 1
            if left[kind] == 0:
                open_still -= 1
                if not open_still:
                    break
        passed_over |= {one for one in left if left[one] <= 0 and self._visited[one] >= OF_ONE_TYPE}
        if large and (open_still < len(left) or group.size > TYPED):
            self.partly[group.path] = group.size
        elif not passed_over:
            return
        self._rest.append((group, passed_over))
        kinds = {one for one in (group.kinds if large else passed_over) if _has_attributes(one)}
        if kinds:
            self._beyond.append((group, kinds))

    def unlike(self) -> Iterator[tuple[Group, Element]]:
        """Yield those objects beyond the visited ones that have an attribute of a type not seen before.

        The types are looked at in C, by what the garbage collector knows of an object: that runs no code of
        users, and makes no dictionary for an object that had none. Each group is looked at once.
        """
        groups, self._beyond = self._beyond, []
        for group, kinds in groups:
            begin, left = 0, iter(group.elements())
            while self._left_beyond > 0:
                try:
                    piece = [*islice(left, LARGE)]
                except RuntimeError:  # another thread changed it meanwhile
                    break
                if not piece:
                    break
                self._left_beyond -= len(piece)
                for element in self._unlike_in(piece, group, begin, kinds):
                    yield group, element
                begin += len(piece)

    def _unlike_in(
        self, piece: list[Any], group: Group, begin: int, kinds: set[type]
    ) -> Iterator[Element]:
        for kind in kinds:
            if kind not in self._known:
                self._known[kind] = _types_in(self._samples[kind]) | ATOMS
            known = self._known[kind]
            of_kind = compress(piece, map(operator.is_, map(type, piece), repeat(kind)))
            if _types_in(of_kind) <= known:
                continue
            for element in islice(group.items(), begin, begin + len(piece)):
                if type(element[0]) is kind and not known >= (found := _types_in([element[0]])):
                    known |= found
                    yield element

    def further(self, found: Iterable[str]) -> Iterator[Group]:
        """Yield the groups to visit whole, each once: in some of their elements a generator was found.

        The same goes for a group of which nothing was visited, because many objects of this type had been
        visited elsewhere, and one of those led to a generator.

        Args:
            found: The paths of the generators.
        """
        rest, self._rest = self._rest, []
        for group, passed_over in rest:
            elements = (f"{group.path}[", f"{group.path}{{")
            if passed_over & self.leads or any(path.startswith(elements) for path in found):
                self.partly.pop(group.path, None)
                yield group
            else:
                self._rest.append((group, passed_over))

    def passed_over(self) -> set[type]:
        """Return the types of which more objects lie in small containers than were visited."""
        groups = (kinds for group, kinds in self._rest if group.path not in self.partly)
        return set().union(*groups)


def _has_attributes(kind: type) -> bool:
    """Whether what the objects of a type refer to are their attributes, of which there are few."""
    return bool(kind.__flags__ & HEAP) and how_to_visit(kind)[0] == "_object"


class _Odd:
    """Stands for the types of attributes that cannot be looked at, so that who has them is visited."""


def _types_in(objects: Iterable[Any]) -> set[type]:
    """Return the types of the attributes of objects."""
    inside = gc.get_referents(*objects)
    try:
        types = {*map(type, inside)}
    except Exception:  # a metaclass forbids it
        return {_Odd}
    if dict in types:  # that of an object, if something asked for it; its attributes lie there
        own = compress(inside, map(operator.is_, map(type, inside), repeat(dict)))
        few = {id(one): one for one in own if dict.__len__(one) <= LARGE}
        types.update(map(type, gc.get_referents(*few.values())))
    return types


_SEQUENCES: Final[frozenset[type]] = frozenset({list, tuple})
_DICTS: Final[frozenset[type]] = frozenset({dict})


def copied(elements: Iterable[Any]) -> Iterator[Any]:
    """Iterate in pieces that are read at once; end where another thread changes the container."""
    left = iter(elements)
    try:
        while piece := [*islice(left, LARGE)]:
            yield from piece
    except RuntimeError:
        return
