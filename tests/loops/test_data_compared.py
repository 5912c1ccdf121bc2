"""What a data set holds, told by samples of it without running its code: the same at all ranks, or parts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from statemachine_trainer.loops.data_compared import fingerprint

INPUTS = torch.arange(600.0).reshape(200, 3)


class Files(Dataset[int]):
    """Has names, code and generators, as data sets of people do."""

    def __init__(self, names: list[str], **more: Any) -> None:
        self.names = names
        self.transform = lambda value: value
        self.generator = torch.Generator()
        vars(self).update(more)

    def __len__(self) -> int:
        raise AssertionError("no code of the data set runs")

    def __getitem__(self, index: int) -> int:
        raise AssertionError("no code of the data set runs")


def names(rank: int = 0) -> list[str]:
    return [f"{rank}/{number}.png" for number in range(1000)]


SAME: dict[str, Callable[[], Any]] = {
    "tensors": lambda: TensorDataset(INPUTS.clone(), INPUTS[:, 0].clone()),
    "columns of a tensor": lambda: INPUTS.T,
    "arrays": lambda: [np.arange(5), np.array(["a", "b"]), np.float32(2)],
    "files": lambda: Files(names(), root=Path("data"), kind=torch.float32, shape=(2, None)),
    "concatenated": lambda: ConcatDataset([TensorDataset(INPUTS)] * 2),
    "nothing in it": lambda: [torch.empty(0, 3), np.zeros((2, 0)), [], {}, torch.tensor(3)],
}


@pytest.mark.parametrize("make", SAME.values(), ids=SAME.keys())
def test_the_same_data_made_twice_is_the_same(make: Callable[[], Any]) -> None:
    assert fingerprint(make()) is not None
    assert fingerprint(make()) == fingerprint(make())


class Slots(Dataset[int]):
    __slots__ = ("part",)

    def __init__(self, part: int) -> None:
        self.part = part


class Names(list[str]):
    part = 0


def named(part: int) -> Names:
    made = Names(["a", "b"])
    made.part = part
    return made


def of_class(part: int) -> object:
    return type("OfClass", (Files,), {"part": part})(names())


PARTS: dict[str, Callable[[int], Any]] = {
    "every other": lambda rank: Subset(TensorDataset(INPUTS), range(rank, 200, 2)),
    "indices": lambda rank: Subset(TensorDataset(INPUTS), [*range(rank * 100, rank * 100 + 100)]),
    "rows": lambda rank: TensorDataset(INPUTS[rank::2]),
    "names": lambda rank: Files(names(rank)),
    "a number": lambda rank: Files(names(), rank=rank),
    "slots": Slots,
    "an attribute of a list": named,
    "an attribute of the class": of_class,
    "a dict": lambda rank: Files(names(), facts={"part": np.int64(rank)}),
}


@pytest.mark.parametrize("make", PARTS.values(), ids=PARTS.keys())
def test_parts_that_ranks_have_for_their_own_differ(make: Callable[[int], Any]) -> None:
    assert fingerprint(make(0)) is not None
    assert fingerprint(make(0)) != fingerprint(make(1))


def test_what_cannot_be_seen_is_not_taken_for_the_same() -> None:
    hidden = [iter([1]), threading.Lock(), np.array([None]), torch.eye(2).to_sparse(), {1, 2}]
    assert [fingerprint(Files(names(), hidden=one)) for one in hidden] == [None] * len(hidden)


def test_of_large_data_a_few_samples_are_read() -> None:
    assert fingerprint([[[number] * 50] * 50 for number in range(100)]) is None
    assert fingerprint([*range(10**6)]) is not None
