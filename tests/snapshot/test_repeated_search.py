"""A search that is done again finds what a new one finds, whatever has changed in between."""

from __future__ import annotations

import contextvars
import functools
import gc
import random
import threading
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from statemachine_trainer.snapshot.repeated_search import Note, RepeatedSearch, SearchResult
from statemachine_trainer.snapshot.sampling import TYPED
from statemachine_trainer.snapshot.search import Search

SETTING: contextvars.ContextVar[object] = contextvars.ContextVar("SETTING", default=None)
OF_MODULE: list[object] = [1]


def reads_globals(number: object = 1, *, more: int = 2) -> object:
    return OF_MODULE, number, more


class Slotted:
    __slots__ = ("inside", "other")

    inside: object
    other: object


class Part:
    shared: object = 3

    def __init__(self) -> None:
        self.number = 1
        self.inside: Any = None

    def method(self) -> object:
        return reads_globals()

    @property
    def doubled(self) -> int:
        return 2 * self.number


class Special(Part):
    """Has a base that is a user's too."""


class Listed(list[object]):
    """A list with attributes."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        self.count = 0
        self.part = Part()


def inner(value: object) -> Callable[[], object]:
    def function() -> object:
        return value

    return function


class World:
    """Objects of many kinds, and two that are in several places."""

    def __init__(self) -> None:
        self.net, self.part, self.special, self.slotted = Net(), Part(), Special(), Slotted()
        self.slotted.inside = self.part
        self.items: list[Any] = [1, self.part, {"a": 1}]
        self.table: dict[Any, Any] = {"one": self.special, "losses": [1.0], 3: (4, "five")}
        self.queue: deque[Any] = deque([Part()])
        self.listed = Listed([1, 2])
        self.closure = inner(Part())
        self.partial = functools.partial(reads_globals, Part())
        self.ordered = OrderedDict(a=Part())
        self.plain: list[Any] = [1, 2]
        self.twice = [self.plain, self.plain]
        self.generator = random.Random(0)
        self.bound = self.part.method

    @property
    def roots(self) -> dict[str, object]:
        names = (
            "net special slotted items table queue listed closure partial ordered twice generator"
        )
        return {name: getattr(self, name) for name in names.split()} | {"bound": self.bound}


def put(holder: str, name: str, value: Callable[[], object]) -> Callable[[World], None]:
    def change(world: World) -> None:
        object.__setattr__(functools.reduce(getattr, holder.split("."), world), name, value())

    return change


def at(holder: str, key: Any, value: Callable[[], object]) -> Callable[[World], None]:
    def change(world: World) -> None:
        functools.reduce(getattr, holder.split("."), world)[key] = value()  # type: ignore[index]

    return change


def into_closure(world: World) -> None:
    assert world.closure.__closure__ is not None
    world.closure.__closure__[0].cell_contents = random.Random(1)


def other_code(world: World) -> None:
    def closure() -> object:
        return OF_MODULE, world

    world.closure.__code__ = inner(0).__code__
    world.closure.__dict__["code"] = closure


def iterator_that_ends(world: World) -> None:
    world.items.append(iter([1]))


def the_same_where_others_were(world: World) -> None:
    world.ordered["a"] = world.queue[0]


def others_where_the_same_was(world: World) -> None:
    world.twice[1] = [random.Random(2)]


def in_context(world: World) -> None:
    world.items.append(SETTING)
    SETTING.set(random.Random(17))


def deep() -> list[object]:
    inside: list[object] = [Part()]
    for _ in range(99):
        inside = [inside]
    return inside


def hook(world: World) -> None:
    world.net.layers[0].register_forward_hook(lambda *_: random.Random(3))


def attribute_of_tensor(world: World) -> None:
    weight: Any = world.net.layers[0].weight
    weight.drawn = random.Random(4)


def tied_layers(world: World) -> None:
    world.net.layers[1] = world.net.layers[0]


CHANGES: dict[str, Callable[[World], None]] = {
    "nothing": lambda world: None,
    "a number": put("net", "count", lambda: 7),
    "another plain type": put("part", "number", lambda: "text"),
    "a longer list of numbers": lambda world: world.plain.append(3),
    "an attribute": put("part", "rng", lambda: random.Random(5)),
    "an attribute of a module": put("net", "rng", lambda: torch.Generator()),
    "in place of None": put("part", "inside", lambda: np.random.default_rng(0)),
    "in a slot": put("slotted", "other", lambda: random.Random(6)),
    "in a list": at("items", 0, lambda: random.Random(7)),
    "in an inner dict": lambda world: world.items[2].update(b=random.Random(8)),
    "in a dict": at("table", "new", lambda: np.random.RandomState(0)),
    "in a list of numbers": lambda world: world.table["losses"].append(random.Random(9)),
    "in a tuple": at("table", 3, lambda: (4, random.Random(10))),
    "in a queue": lambda world: world.queue.append(random.Random(11)),
    "in a list with attributes": lambda world: setattr(world.listed, "rng", random.Random(12)),
    "in a closure": into_closure,
    "in defaults": put("closure", "__defaults__", lambda: (random.Random(13),)),
    "in an attribute of a function": put("closure", "rng", lambda: random.Random(14)),
    "in a global": lambda world: OF_MODULE.append(random.Random(15)),
    "in a class": lambda world: setattr(Part, "shared", random.Random(16)),
    "in a context variable": in_context,
    "in a weak reference": lambda world: world.items.append(weakref.ref(world.special)),
    "in a read-only view": at("items", 0, lambda: types.MappingProxyType({"a": random.Random(18)})),
    "a generator in place of another": at("items", 0, lambda: random.Random(19)),
    "an equal object": at("items", 1, Part),
    "an object with other names": at("items", 1, Special),
    "an iterator": iterator_that_ends,
    "one object in two places": the_same_where_others_were,
    "two objects in place of one": others_where_the_same_was,
    "a hook": hook,
    "an attribute of a tensor": attribute_of_tensor,
    "another layer": lambda world: world.net.add_module("last", nn.Linear(2, 2)),
    "one layer in two places": tied_layers,
    "other code": other_code,
    "a tensor": put("part", "inside", lambda: torch.zeros(2)),
    "a lock": put("part", "inside", threading.Lock),
    "a cycle": lambda world: world.items.append(world.items),
    "deep nesting": at("items", 0, deep),
}


@pytest.fixture(autouse=True)
def as_it_was() -> Any:
    yield
    del OF_MODULE[1:]
    Part.shared = 3
    SETTING.set(None)


def searched(roots: dict[str, object]) -> SearchResult:
    notes: list[Note] = []
    search = Search(roots, notice=lambda *note: notes.append(note), quiet=True)
    return SearchResult(search.places, search.unheld, search.modules, notes)


def check(found: SearchResult, roots: dict[str, object]) -> None:
    new = searched(roots)
    assert [*found.places] == [*new.places]
    for path, place in new.places.items():
        here = found.places[path]
        assert here.generator is place.generator
        assert (here.step, here.also) == (place.step, place.also)
    assert found.unheld == new.unheld
    assert [*found.modules] == [*new.modules]
    assert all(found.modules[path] is module for path, module in new.modules.items())
    assert [(path, name) for path, _, name, _ in found.notes] == [
        (path, name) for path, _, name, _ in new.notes
    ]
    for one, other in zip(found.notes, new.notes, strict=True):
        assert one[1] is other[1]
        assert one[3] is other[3]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_after_a_change_it_finds_what_a_new_search_finds(change: Callable[[World], None]) -> None:
    world, repeated = World(), RepeatedSearch(noting=True)
    check(repeated.search(world.roots), world.roots)
    assert repeated.search(world.roots).same  # there is a way to follow
    change(world)
    check(repeated.search(world.roots), world.roots)
    world.net.count += 1
    check(repeated.search(world.roots), world.roots)


@pytest.mark.parametrize("first", ["nothing", "an iterator", "in a class", "in a tuple", "a cycle"])
def test_it_follows_a_way_that_leads_past_any_of_these(first: str) -> None:
    world, repeated = World(), RepeatedSearch(noting=True)
    for name in [first, *CHANGES]:
        CHANGES[name](world)
        check(repeated.search(world.roots), world.roots)


def test_numbers_and_tensors_may_change_on_the_way() -> None:
    world, repeated = World(), RepeatedSearch(noting=True)
    world.part.inside = torch.zeros(2)
    repeated.search(world.roots)
    world.net.count, world.part.number, world.part.inside = 5, 0.5, torch.ones(3)  # type: ignore[assignment]
    world.plain[:] = range(5)
    found = repeated.search(world.roots)
    assert found.same
    assert ("net", "count", 5) in [
        (path, name, value) for path, _, name, value in found.notes if type(value) is int
    ]


def test_no_object_lives_longer_for_it() -> None:
    world, repeated = World(), RepeatedSearch(noting=True)
    repeated.search(world.roots)
    gone = weakref.ref(world.special), weakref.ref(world.net.layers[0])
    world.special = world.table["one"] = world.net.layers[0] = None  # type: ignore[assignment]
    gc.collect()
    assert [one() for one in gone] == [None, None]


def test_an_object_in_the_memory_of_another_one_is_looked_at() -> None:
    repeated, holder = RepeatedSearch(), [Part()]
    repeated.search({"holder": holder})
    for number in range(50):
        holder.clear()  # so that the next one may have the same identity
        holder.append(Part())
        if number == 49:
            holder[0].inside = random.Random(0)
        assert len(repeated.search({"holder": holder}).places) == (number == 49)


def test_a_large_list_of_objects_is_searched_each_time() -> None:
    repeated = RepeatedSearch()
    items = [Part() for _ in range(2000)]
    roots = {"items": items}
    repeated.search(roots)
    items[1500].inside = random.Random(0)
    assert [*repeated.search(roots).places] == [*Search(roots).places] == ["items[1500].inside"]


def inside(value: object, depth: int) -> object:
    for _ in range(depth):
        part = Part()
        part.inside = value
        value = part
    return value


@pytest.mark.parametrize("several", [False, True], ids=["one list", "several lists"])
def test_a_list_behind_large_ones_is_looked_at_as_in_a_new_search(several: bool) -> None:
    large, last = [0] * TYPED, [0] * 1000
    parts = [inside([*large] if several else large, 1) for _ in range(4)]
    roots = {"parts": parts, "last": inside(last, 3)}
    repeated = RepeatedSearch(noting=True)
    repeated.search(roots)
    assert repeated.search(roots).same is not several
    last[700] = random.Random(0)  # type: ignore[call-overload]
    check(repeated.search(roots), roots)


def test_large_lists_that_are_named_by_functions_are_looked_at_in_the_order_of_a_search() -> None:
    more = [[0] * TYPED for _ in range(3)]
    OF_MODULE.extend(more)
    first, last = inner(0), [0] * 1000
    first.__dict__["read"] = reads_globals
    roots = {"first": first, "last": inside(last, 2)}
    repeated = RepeatedSearch(noting=True)
    repeated.search(roots)
    last[700] = random.Random(0)  # type: ignore[call-overload]
    check(repeated.search(roots), roots)


def test_a_dict_of_an_object_may_have_any_keys() -> None:
    part, repeated = Part(), RepeatedSearch(noting=True)
    part.__dict__ = {1: random.Random(0), (2, 3): random.Random(1), "number": 2}  # type: ignore[dict-item]
    check(repeated.search({"part": part}), {"part": part})
    found = repeated.search({"part": part})
    assert [*found.places] == ["part.#0", "part.#1"]
    assert [note[2] for note in found.notes if note[1] is part] == ["number"]
