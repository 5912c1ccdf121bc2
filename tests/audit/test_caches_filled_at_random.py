"""A cache of a closure that is filled with random numbers is told: a new process fills it with others."""

from __future__ import annotations

import random
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from statemachine_trainer import Trainer
from statemachine_trainer.audit.report import NotHeld
from statemachine_trainer.callbacks import Checkpoints
from tests.audit.test_what_a_script_made import Net


class Rows(Dataset[torch.Tensor]):
    def __init__(self, draw: Callable[[int], float]) -> None:
        self.draw = draw

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((4,), self.draw(index))


class Noise:
    def __init__(self, value: float) -> None:
        self.value = value


def told(draw: Callable[[int], float], folder: Path) -> list[str]:
    trainer = Trainer(
        max_epochs=1, device="cpu", progress=False, checkpoints=Checkpoints(folder, every=1)
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Net(), DataLoader(Rows(draw), batch_size=2))
    return [str(one.message) for one in caught if one.category is NotHeld]


def test_a_dict_of_a_closure_is_told(tmp_path: Path) -> None:
    cache: dict[int, float] = {}

    def draw(index: int) -> float:
        if index not in cache:
            cache[index] = random.random()
        return cache[index]

    (message,) = told(draw, tmp_path)
    assert "attribute 'cache' of the function" in message


def test_a_cache_of_weak_references_is_told(tmp_path: Path) -> None:
    cache: weakref.WeakValueDictionary[int, Noise] = weakref.WeakValueDictionary()
    alive = []

    def draw(index: int) -> float:
        if index not in cache:
            made = Noise(random.random())
            alive.append(made)
            cache[index] = made
        return cache[index].value

    (message,) = told(draw, tmp_path)
    assert "attribute 'cache' of the function" in message


def test_a_cache_of_what_follows_from_the_index_is_not_told(tmp_path: Path) -> None:
    cache: dict[int, float] = {}

    def read(index: int) -> float:
        if index not in cache:
            cache[index] = index / 8
        return cache[index]

    assert told(read, tmp_path) == []
