"""Code that draws from the operating system is told: no object is left whose state could be saved."""

from __future__ import annotations

import os
import random
import secrets
import types
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.random import default_rng

from statemachine_trainer.snapshot.search import Search
from statemachine_trainer.snapshot.system_randomness import drawn_from_system


def in_a_variable() -> float:
    rng = np.random.default_rng()
    return float(rng.random())


def with_none() -> float:
    return float(default_rng(None).random())


def imported_inside() -> float:
    import random as numbers

    return random.Random().random() + numbers.random()


def seeded_again() -> None:
    random.seed()
    np.random.seed(None)


DRAWS: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "in a variable": (in_a_variable, ["np.random.default_rng"]),
    "with None as seed": (with_none, ["default_rng"]),
    "of python": (imported_inside, ["random.Random"]),
    "seeded again": (seeded_again, ["random.seed", "np.random.seed"]),
    "bytes": (lambda: os.urandom(2), ["os.urandom"]),
    "secrets": (lambda: secrets.randbelow(3), ["secrets.randbelow"]),
    "of the system": (lambda: random.SystemRandom().random(), ["random.SystemRandom"]),
    "an identifier as a number": (lambda: uuid.uuid4().int % 3, ["uuid.uuid4"]),
    "in a function inside": (lambda: lambda: default_rng().normal(), ["default_rng"]),
}


@pytest.mark.parametrize("draw, calls", DRAWS.values(), ids=DRAWS)
def test_a_call_without_a_seed_is_found(draw: types.FunctionType, calls: list[str]) -> None:
    assert drawn_from_system(draw) == calls


class Keeping:
    def __init__(self) -> None:
        self.first = np.random.default_rng().random()

    def renew(self) -> None:
        self.rng = np.random.default_rng()


HARMLESS: dict[str, Callable[..., Any]] = {
    "with a seed": lambda index: default_rng(index).random() + random.Random(3).random(),
    "seeded with a number": lambda: random.seed(3),
    "an identifier as a name": lambda: str(uuid.uuid4()),
    "a method of another object": lambda thing: thing.seed(),
    "handed on": lambda: default_rng(),
    "kept": Keeping.renew,
    "when the object is made": Keeping.__init__,
}


@pytest.mark.parametrize("draw", HARMLESS.values(), ids=HARMLESS)
def test_what_has_a_seed_or_is_kept_is_not_told(draw: types.FunctionType) -> None:
    assert drawn_from_system(draw) == []


def test_it_is_told_with_its_path_and_a_way_out() -> None:
    (line,) = [str(one) for one in Search({"train.dataset": in_a_variable}).unheld]
    assert line.startswith("train.dataset: np.random.default_rng(...) is drawn from the operating")
    assert "give it a seed" in line
