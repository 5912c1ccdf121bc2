"""Of many objects of one class those are found that have something which the others do not have."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from statemachine_trainer.snapshot.sampling import BEYOND, LARGE, OF_ONE_TYPE
from statemachine_trainer.snapshot.search import Search

MANY = 2 * OF_ONE_TYPE


class Item:
    """An object with attributes; those of some are set later."""

    ran = 0

    def __init__(self, number: int) -> None:
        self.number = number

    def __getattr__(self, name: str) -> Any:
        Item.ran += 1
        raise AttributeError(name)


class Asked(Item):
    """One whose dictionary somebody has asked for."""

    def __init__(self, number: int) -> None:
        vars(self)["number"] = number


class Slotted:
    __slots__ = ("number", "rng")

    def __init__(self, number: int) -> None:
        self.number, self.rng = number, None


class Several(Item):
    """One with a container of plain values."""

    def __init__(self, number: int) -> None:
        self.tags = [number]


def in_pieces(things: list[Any]) -> list[list[Any]]:
    return [things[begin : begin + 100] for begin in range(0, len(things), 100)]


IN: dict[str, tuple[Callable[[list[Any]], Any], str]] = {
    "one long list": (lambda things: things, f"[{MANY - 3}]"),
    "small lists": (in_pieces, f"[{MANY // 100 - 1}][97]"),
    "small tuples": (lambda things: [*map(tuple, in_pieces(things))], f"[{MANY // 100 - 1}][97]"),
    "a dict": (lambda things: dict(enumerate(things)), f"[{MANY - 3}]"),
}


@pytest.mark.parametrize("kind", [Item, Asked, Slotted, Several])
@pytest.mark.parametrize("place", IN)
def test_a_generator_that_only_a_late_object_has_is_found(kind: Any, place: str) -> None:
    put, path = IN[place]
    things = [kind(number) for number in range(MANY)]
    things[-3].rng = random.Random(0)
    assert [*Search({"data": put(things)}).places] == [f"data{path}.rng"]


@pytest.mark.parametrize(
    "make",
    [random.Random, lambda: np.random.default_rng(0), torch.Generator],
)
def test_of_each_kind_of_generator_it_is_found(make: Callable[[], Any]) -> None:
    things = [Item(number) for number in range(MANY)]
    things[-1].rng = make()  # type: ignore[attr-defined]
    assert [*Search({"data": things}).places] == [f"data[{MANY - 1}].rng"]


def test_where_one_was_found_all_others_are() -> None:
    things = [Item(number) for number in range(MANY)]
    for place in (1200, 1201, MANY - 1):
        things[place].rng = random.Random(place)  # type: ignore[attr-defined]
    found = [*Search({"data": in_pieces(things)}).places]
    assert found == ["data[12][0].rng", "data[12][1].rng", f"data[{MANY // 100 - 1}][99].rng"]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Any]:
    with (tmp_path / "file").open("w") as file:
        yield file


def test_what_no_checkpoint_can_hold_is_found_too(opened: Any) -> None:
    things = [Item(number) for number in range(MANY)]
    things[-1].file = opened  # type: ignore[attr-defined]
    (unheld,) = Search({"data": things}).unheld
    assert unheld.path == f"data[{MANY - 1}].file"


def test_no_code_of_the_objects_runs_and_none_is_visited_that_is_like_the_others() -> None:
    things = [Item(number) for number in range(MANY)]
    Item.ran = 0
    search = Search({"data": in_pieces(things)})
    assert Item.ran == 0
    assert search.visited <= OF_ONE_TYPE + MANY // 100 + 10


def test_an_attribute_of_a_new_type_costs_one_visit_and_not_one_for_each_object() -> None:
    things = [Item(number) for number in range(MANY)]
    for thing in things[LARGE:]:
        thing.inside = {"one": thing}  # type: ignore[attr-defined]
    assert Search({"data": things}).visited < LARGE


def test_so_many_are_looked_at_in_all_containers_together() -> None:
    things = [Item(0)] * (BEYOND + LARGE)
    last = Item(1)
    last.rng = random.Random(0)  # type: ignore[attr-defined]
    assert [*Search({"data": [*things[: BEYOND - LARGE], last]}).places] != []
    assert [*Search({"data": [*things, last]}).places] == []
