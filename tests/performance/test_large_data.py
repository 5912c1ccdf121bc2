"""What a fit with checkpoints costs before its first batch, over a data set of very many objects.

It is counted in Python calls, which are the same on every machine. `benchmarks/large_data.py` has times.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from statemachine_trainer.snapshot.sampling import ALL_TYPED, LARGE, OF_ONE_TYPE, TYPED
from statemachine_trainer.snapshot.search import Search
from statemachine_trainer.trainer import Trainer
from tests.counting import counting_calls

FEW, MANY = 2_000, 12_000
MOST_CALLS = 4_000
"""Python calls that the further objects may add: much less than one for each of them in one walk."""


class Item:
    def __init__(self, number: int) -> None:
        self.number, self.text = number, "one"


class Slotted:
    __slots__ = ("number", "text")

    def __init__(self, number: int) -> None:
        self.number, self.text = number, "one"


KINDS: dict[str, Callable[[int], Any]] = {
    "objects": lambda count: [*map(Item, range(count))],
    "tuples": lambda count: [(number, "one") for number in range(count)],
    "texts": lambda count: {f"file {number}": "one" for number in range(count)},
    "nested lists": lambda count: [[[number], [1]] for number in range(count)],
    "objects with slots": lambda count: [*map(Slotted, range(count))],
    "lists of objects": lambda count: [[*map(Item, range(300))] for _ in range(count // 300 + 1)],
    "a set": lambda count: {(number, "one") for number in range(count)},
}


class Data(Dataset[torch.Tensor]):
    def __init__(self, inside: Any) -> None:
        self.inside = inside

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((2,), float(index))


class Net(nn.Linear):
    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self(batch).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def calls_of_a_start(inside: Any, folder: Path) -> int:
    trainer = Trainer(max_epochs=1, device="cpu", progress=False, checkpoints=folder)
    model, loader = Net(2, 1), DataLoader(Data(inside), batch_size=2)
    seen: Counter[str] = Counter()
    with counting_calls(seen):
        trainer.start(model, loader)
    return seen.total()


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_makes_no_call_for_each_object(kind: str, tmp_path: Path) -> None:
    make = KINDS[kind]
    few = calls_of_a_start(make(FEW), tmp_path / "few")  # with what fills caches
    many = calls_of_a_start(make(MANY), tmp_path / "many")
    assert many - few < MOST_CALLS


def test_of_one_type_a_thousand_objects_are_visited_in_all_small_containers() -> None:
    inside = [[*map(Item, range(50))] for _ in range(LARGE)]
    search = Search({"data": inside})
    assert OF_ONE_TYPE <= search.visited <= OF_ONE_TYPE + LARGE + 20
    assert search.sampling.passed_over() == {Item}


def test_where_an_object_of_this_type_has_a_generator_all_are_visited() -> None:
    inside = [[*map(Item, range(50))] for _ in range(LARGE)]
    inside[0][3].rng = random.Random(0)  # type: ignore[attr-defined]
    inside[-1][-1].rng = random.Random(1)  # type: ignore[attr-defined]
    search = Search({"data": inside})
    assert [*search.places] == ["data[0][3].rng", f"data[{LARGE - 1}][49].rng"]
    assert search.sampling.passed_over() == set()


def test_types_are_looked_at_for_so_many_elements_at_most() -> None:
    inside = {number: [*range(TYPED)] for number in range(20)}
    search = Search({"data": inside})
    assert search.sampling.typed <= ALL_TYPED + 20 * LARGE + TYPED
