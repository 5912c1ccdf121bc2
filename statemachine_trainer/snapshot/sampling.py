"""Chooses which elements of containers a search visits, so that large data sets cost little.

Types are looked at for many elements at once, without a Python call for each. Where all are plain
values, or plain sequences or dicts of those, nothing is visited. Of others a few of each type are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any, Final, NamedTuple

from statemachine_trainer.snapshot.kinds import ATOMS

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
    """

    path: str
    size: int
    items: Callable[[], Iterator[Element]]
    at: Callable[[Any], tuple[str, Any]]
    kinds: set[type]
    way: Any


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
