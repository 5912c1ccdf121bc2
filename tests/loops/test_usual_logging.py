"""`log` has a short way for what is usual. It leads to the same as the long one, to the bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from statemachine_trainer.loops.metrics.log import log, logging_to
from statemachine_trainer.loops.metrics.table import (
    BadMetricValue,
    MetricConflict,
    Metrics,
    UnclearBatchSize,
)
from tests.counting import counting_calls
from tests.loops.outer_kit import make_trainer

Logged = tuple[Any, int, dict[str, Any]]
"""A value, the size of its batch, and settings."""

MAKERS: dict[str, Callable[[int], Any]] = {
    "a pair": lambda n: (torch.zeros(n, 2), torch.zeros(n)),
    "a list": lambda n: [torch.zeros(n, 2)],
    "a tensor": lambda n: torch.zeros(n, 2),
    "a dict": lambda n: {"inputs": torch.zeros(n, 2), "targets": torch.zeros(n)},
    "nested": lambda n: {"inputs": (torch.zeros(n, 2), torch.zeros(n))},
    "with a text": lambda n: (torch.zeros(n, 2), "name"),
}
VALUES = st.one_of(
    st.floats(width=32),
    st.integers(-1000, 1000),
    st.booleans(),
    st.floats(width=32).map(torch.tensor),
    st.floats(width=32).map(lambda one: torch.tensor([[one]], requires_grad=True)),
    st.integers(-1000, 1000).map(torch.tensor),
)
SETTINGS = st.sampled_from(
    [{}, {"on_step": True}, {"reduce": "mean"}, {"batch_size": 3}, {"batch_size": 0.5}]
)


def context_of(table: Metrics) -> Any:
    return SimpleNamespace(log_table=table, log_suffix="", split=None)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@given(logged=st.lists(st.tuples(VALUES, st.integers(0, 5), SETTINGS), max_size=8))
def test_what_is_logged_is_what_the_table_makes_of_it(
    make: Callable[[int], Any], logged: list[Logged]
) -> None:
    found, expected = Metrics(), Metrics()
    context = context_of(found)
    with logging_to(context):
        for value, size, settings in logged:
            context.split = make(size)
            log("number", value, **settings)
            expected.log("number", value, **{"batch_size": size, **settings})
    assert repr(found.state_dict()) == repr(expected.state_dict())
    assert repr(found.compute()) == repr(expected.compute())


def test_a_value_that_is_read_in_between_is_not_the_one_of_before() -> None:
    table = Metrics()
    context = context_of(table)
    with logging_to(context):
        for number in (1.0, 3.0):
            context.split = torch.zeros(1)
            log("number", number)
            seen = table["number"]
    assert seen == 2.0


@pytest.mark.parametrize(
    "value, settings, error",
    [
        (torch.zeros(2), {}, BadMetricValue),
        (torch.tensor(1j), {}, BadMetricValue),
        ("a text", {}, BadMetricValue),
        (1.0, {"batch_size": -1}, BadMetricValue),
        (1.0, {"reduce": "sum"}, MetricConflict),
    ],
)
def test_what_is_wrong_is_told_at_a_known_name_too(
    value: Any, settings: dict[str, Any], error: type[Exception]
) -> None:
    table = Metrics()
    context = context_of(table)
    context.split = torch.zeros(4)
    with logging_to(context):
        log("number", 1.0)
        before = table.state_dict()
        with pytest.raises(error, match="'number'"):
            log("number", value, **settings)
    assert table.state_dict() == before


@pytest.mark.parametrize(
    "value",
    [1.0, np.float32(1.0), torch.tensor(1.0), torch.zeros((), device="meta")],
    ids=["number", "of numpy", "tensor", "on another device"],
)
def test_at_a_known_name_the_parts_of_a_usual_batch_are_not_searched(value: Any) -> None:
    context = context_of(Metrics())
    context.split = (torch.zeros(4, 2), torch.zeros(4))
    seen: Counter[str] = Counter()
    with logging_to(context):
        log("number", value)
        with counting_calls(seen):
            log("number", value)
    assert not [name for name in seen if ".sizes." in name]


def test_a_batch_that_becomes_unclear_is_told() -> None:
    table = Metrics()
    context = context_of(table)
    with logging_to(context):
        context.split = (torch.zeros(4), torch.zeros(4))
        log("number", 1.0)
        context.split = (torch.zeros(4), torch.zeros(3))
        with pytest.warns(UnclearBatchSize, match="'number'"):
            log("number", 1.0)


def test_what_is_logged_after_a_pass_begins_the_next_one() -> None:
    table = Metrics()
    context = context_of(table)
    context.split = torch.zeros(4)
    with logging_to(context):
        log("number", 1.0)
        table.over = True
        log("number", 5.0)
    assert table["number"] == 5.0


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_a_batch_of_samples_of_several_lengths_weighs_as_many_as_there_are() -> None:
    """Of a nested tensor there is a number of samples, and no shape."""

    class Lengths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            log("number", float(batch_idx))
            mean: torch.Tensor = self.weight * batch[1].mean()
            return mean

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def of(*lengths: int) -> Any:
        samples = torch.nested.nested_tensor([torch.ones(one) for one in lengths])
        return samples, torch.ones(len(lengths))

    assert make_trainer().fit(Lengths(), [of(1), of(2, 3, 1)]) == {"number": 0.75}
