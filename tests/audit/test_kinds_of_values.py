"""Values of every kind, wherever they lie, are told if what they were decides what they become."""

from __future__ import annotations

import argparse
import array
import contextvars
import enum
import functools
import threading
import types
from collections import ChainMap, UserDict, UserList
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from statemachine_trainer import Trainer
from statemachine_trainer.audit.plain_values import Reader
from tests.audit.test_changing_values import Net, told


class Phase(enum.Enum):
    FIRST = 0
    SECOND = 1
    THIRD = 2


class Count(int):
    """A number with a class of its own."""


class Pair(NamedTuple):
    step: int


@dataclass(frozen=True)
class Point:
    step: int


class Stage:
    """One of several objects, each of which leads to the next."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.next = self if number > 8 else Stage(number + 1)


class Window(list[int]):
    """A list with a method that changes it."""

    def push(self, one: int) -> None:
        self.append(one)
        if len(self) > 3:
            self.pop(0)


class Behind(Net):
    """A model whose counter lies behind a property."""

    @property
    def count(self) -> int:
        return int(self._count)

    @count.setter
    def count(self, count: int) -> None:
        self._count = count


def count_one(model: Any, batch: torch.Tensor) -> bool:
    model.count = model.count + 1
    return bool(model.count > 3)


def count_below(model: Any, batch: torch.Tensor) -> bool:
    model.below.count += 1
    return bool(model.below.count > 3)


def count_each(model: Any, batch: torch.Tensor) -> bool:
    model.many[0] += 1
    return bool(model.many[0] > 3)


def replace_pair(model: Any, batch: torch.Tensor) -> bool:
    model.pair = model.pair._replace(step=model.pair.step + 1)
    return bool(model.pair.step > 3)


def replace_point(model: Any, batch: torch.Tensor) -> bool:
    model.point = replace(model.point, step=model.point.step + 1)
    return bool(model.point.step > 3)


def next_phase(model: Any, batch: torch.Tensor) -> None:
    if model.phase is Phase.FIRST:
        model.phase = Phase.SECOND
    elif model.phase is Phase.SECOND:
        model.phase = Phase.THIRD


def match_phase(model: Any, batch: torch.Tensor) -> None:
    match model.phase:
        case Phase.FIRST:
            model.phase = Phase.SECOND
        case Phase.SECOND:
            model.phase = Phase.THIRD


def keep_best(model: Any, batch: torch.Tensor) -> None:
    score = float(model.total)
    model.total += 1
    if score > model.best:
        model.best = score


def next_stage(model: Any, batch: torch.Tensor) -> bool:
    model.stage = model.stage.next
    return bool(model.stage.number > 3)


def push(model: Any, batch: torch.Tensor) -> int:
    model.window.push(len(batch))
    return sum(model.window)


def add_deep(model: Any, batch: torch.Tensor) -> int:
    model.deep["losses"][0].append(1)
    return sum(model.deep["losses"][0])


def count_by_dict(model: Any, batch: torch.Tensor) -> bool:
    vars(model)["count"] = vars(model)["count"] + 1
    return bool(model.count > 3)


def count_by_text(model: Any, batch: torch.Tensor) -> bool:
    before = getattr(model, "count")  # noqa: B009
    setattr(model, "count", getattr(model, "count") + 1)  # noqa: B009, B010
    return bool(before > 3)


def replace_inside(model: Any, batch: torch.Tensor) -> bool:
    model.many[0] = Stage(model.many[0].number + 1)
    return bool(model.many[0].number > 3)


def raise_parameter(model: Any, batch: torch.Tensor) -> bool:
    with torch.no_grad():
        model.below.count.add_(1)
    return bool(model.below.count.sum() > 3)


def count_on_weight(model: Any, batch: torch.Tensor) -> bool:
    model.layer.weight.count = getattr(model.layer.weight, "count", 0) + 1
    return bool(model.layer.weight.count > 3)


def count_on_tensor(model: Any, batch: torch.Tensor) -> bool:
    model.below.count = getattr(model.below, "count", 0) + 1
    return bool(model.below.count > 3)


def space(**attributes: Any) -> Any:
    return types.SimpleNamespace(**attributes)


CASES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "float of numpy": (lambda: Net(count_one, count=np.float64(0)), "'count'"),
    "integer of numpy": (lambda: Net(count_one, count=np.int64(0)), "'count'"),
    "decimal": (lambda: Net(count_one, count=Decimal(0)), "'count'"),
    "number of a class": (lambda: Net(count_one, count=Count(0)), "'count'"),
    "behind a property": (lambda: Behind(count_one, _count=0), "'_count'"),
    "by the dictionary": (lambda: Net(count_by_dict, count=0), "'count'"),
    "by its name": (lambda: Net(count_by_text, count=0), "'count'"),
    "named tuple": (lambda: Net(replace_pair, pair=Pair(0)), "'pair'"),
    "frozen dataclass": (lambda: Net(replace_point, point=Point(0)), "'point'"),
    "another object": (lambda: Net(next_stage, stage=Stage(0)), "'stage'"),
    "phase, by if": (lambda: Net(next_phase, phase=Phase.FIRST), "'phase'"),
    "phase, by match": (lambda: Net(match_phase, phase=Phase.FIRST), "'phase'"),
    "best so far": (lambda: Net(keep_best, best=-1.0, total=torch.zeros(())), "'best'"),
    "namespace": (lambda: Net(count_below, below=space(count=0)), "'count'"),
    "arguments": (lambda: Net(count_below, below=argparse.Namespace(count=0)), "'count'"),
    "parameter of no module": (
        lambda: Net(raise_parameter, below=space(count=nn.Parameter(torch.zeros(2)))), "'count'",
    ),
    "dict of collections": (lambda: Net(count_each, many=UserDict({0: 0})), "'many'"),
    "list of collections": (lambda: Net(count_each, many=UserList([0])), "'many'"),
    "chain of dicts": (lambda: Net(count_each, many=ChainMap({0: 0})), "'many'"),
    "numbers of numpy in a list": (lambda: Net(count_each, many=[np.float64(0)]), "'many'"),
    "array of python": (lambda: Net(count_each, many=array.array("d", [0.0])), "'many'"),
    "bytes": (lambda: Net(count_each, many=bytearray(1)), "'many'"),
    "array of objects": (lambda: Net(count_each, many=np.array([0], dtype=object)), "'many'"),
    "view of bytes": (lambda: Net(count_each, many=memoryview(bytearray(1))), "'many'"),
    "another object in a list": (lambda: Net(replace_inside, many=[Stage(0)]), "'many'"),
    "list with a method": (lambda: Net(push, window=Window()), "'window'"),
    "list in a list in a dict": (lambda: Net(add_deep, deep={"losses": [[]]}), "'deep'"),
    "attribute of a parameter": (lambda: Net(count_on_weight), "'count' of the tensor model.layer.weight"),
    "attribute of a tensor": (
        lambda: Net(count_on_tensor, below=torch.zeros(2)), "'count' of the tensor model.below",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_a_value_of_any_kind_that_goes_on_from_what_it_was_is_told(
    tmp_path: Path, kind: str
) -> None:
    make, name = CASES[kind]
    lines = told(tmp_path, make())
    assert any(line.startswith(f"attribute {name}") for line in lines), lines


def counted(counts: dict[str, int], trainer: Trainer) -> bool:
    counts["batches"] += 1
    return counts["batches"] > 3


def counting(trainer: Trainer) -> bool:
    counting.batches += 1  # type: ignore[attr-defined]
    return bool(counting.batches > 3)  # type: ignore[attr-defined]


SEEN: contextvars.ContextVar[int] = contextvars.ContextVar("SEEN", default=0)
OF_THREAD = threading.local()


def in_context(trainer: Trainer) -> bool:
    SEEN.set(SEEN.get() + 1)
    return SEEN.get() > 3


def in_thread(trainer: Trainer) -> bool:
    OF_THREAD.count = getattr(OF_THREAD, "count", 0) + 1
    return bool(OF_THREAD.count > 3)


@pytest.mark.parametrize(
    "receiver, what",
    [
        (functools.partial(counted, {"batches": 0}), "argument 'counts' of the partial of counted"),
        (counting, "attribute 'batches' of the function counting"),
        (in_context, "global 'SEEN' of the module tests.audit.test_kinds_of_values"),
        (in_thread, "attribute 'count' of the global tests.audit.test_kinds_of_values.OF_THREAD"),
    ],
)
def test_what_a_function_keeps_is_told_wherever_it_keeps_it(
    tmp_path: Path, receiver: Any, what: str
) -> None:
    counting.batches = 0  # type: ignore[attr-defined]

    def fit() -> list[str]:
        return told(tmp_path, Net(), receiver=receiver)

    try:
        (line,) = contextvars.copy_context().run(fit)
    finally:
        vars(OF_THREAD).clear()
    assert line.startswith(what)


def follow_size(model: Any, batch: torch.Tensor) -> int:
    if model.size != batch.shape[0]:
        model.size = batch.shape[0]
    return int(model.size)


def follow_other(model: Any, batch: torch.Tensor) -> None:
    model.below.count = int(torch.randint(1000, ()))
    if model.step != model.below.count:
        model.step = model.below.count


class Meter:
    """An object that writes down its own state."""

    def __init__(self) -> None:
        self.total = 0.0

    def add(self) -> None:
        self.total += 1

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total = state["total"]


def add_to_meters(model: Any, batch: torch.Tensor) -> float:
    if not model.meters:
        model.meters.append(Meter())
    model.meters[0].add()
    return float(sum(one.total for one in model.meters))


def make_if_new(model: Any, batch: torch.Tensor) -> torch.Tensor:
    if not model.made:
        model.made = True
    return batch


@pytest.mark.parametrize(
    "model",
    [
        Net(follow_size, size=0),
        Net(follow_other, step=0, below=space(count=0)),
        Net(make_if_new, made=False),
        Net(add_to_meters, meters=[]),
    ],
)
def test_what_follows_from_something_else_is_not_told(tmp_path: Path, model: Net) -> None:
    assert not told(tmp_path, model)


def test_a_list_that_holds_itself_is_read() -> None:
    endless: list[Any] = [1]
    endless.append(endless)
    seen = Reader(()).seen(endless)
    assert seen is not None
    assert seen.shown == "a list of 2"


class Loud:
    """An object that must not be asked anything."""

    def __repr__(self) -> str:
        raise AssertionError("code of users runs")

    __eq__ = __hash__ = __len__ = __iter__ = __repr__  # type: ignore[assignment]


class LoudDict(dict[str, int]):
    __len__ = __iter__ = items = keys = __repr__ = Loud.__repr__  # type: ignore[assignment]


@pytest.mark.parametrize("value", [Loud(), LoudDict(one=1), [Loud()], {"one": Loud()}])
def test_no_code_of_users_runs_when_a_value_is_read(value: object) -> None:
    assert Reader(()).seen(value) is not None


def add_in_place(model: Any, batch: torch.Tensor) -> None:
    batch.add_(1)


def single_rows(dataset: Any) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=None)


@pytest.mark.parametrize(
    "data, what",
    [
        ([torch.ones(2, 4)] * 2, "train.loader[0], from a Tensor (2, 4)"),
        (single_rows([torch.ones(4)] * 2), "train.dataset[0], from a Tensor (4,)"),
    ],
)
def test_batches_that_are_changed_in_place_are_told(tmp_path: Path, data: Any, what: str) -> None:
    lines = told(tmp_path, Net(add_in_place), data)
    assert lines[0].startswith(what)
    assert "batch = batch + 1" in lines[0]


def test_batches_that_are_made_anew_are_not_told(tmp_path: Path) -> None:
    rows = DataLoader(TensorDataset(torch.ones(4, 4)), batch_size=2, collate_fn=first_rows)
    assert not told(tmp_path, Net(add_in_place), rows)


def first_rows(samples: list[tuple[torch.Tensor]]) -> torch.Tensor:
    return torch.stack([row for (row,) in samples])
