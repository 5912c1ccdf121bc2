"""Values that are set now and then, or after they are read, go on from step to step: they are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from statemachine_trainer.audit.set_at_times import set_at_times
from tests.audit.test_changing_values import Net, told


class Scaled(Net):
    """A model with a value that its `forward` reads."""

    level = 1.0

    def __init__(self, change: Any = None, **attributes: Any) -> None:
        super().__init__(change, **{"scale": 1.0, "seen": 0, "table": 1.0, **attributes})

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.number = batch_idx
        me: Any = self
        batch = batch * me.scale * me.table * me.level
        return super().training_step(batch, batch_idx)


def at_one_step(model: Any, batch: torch.Tensor) -> None:
    if model.number == 2:
        model.scale = 0.5


def at_one_step_or_another(model: Any, batch: torch.Tensor) -> None:
    if model.number == 7:
        model.scale = 0.5
    elif model.number == 2:
        model.scale = 0.25


def after_a_return(model: Any, batch: torch.Tensor) -> None:
    if model.number < 2:
        return
    model.scale = 0.5


def where_two_things_hold(model: Any, batch: torch.Tensor) -> None:
    if model.number == 2 and batch.shape[0]:
        model.scale = 0.5


def in_an_error(model: Any, batch: torch.Tensor) -> None:
    try:
        [0, 0][model.number]
    except IndexError:
        model.scale = 0.5


def of_the_class(model: Any, batch: torch.Tensor) -> None:
    if model.number == 2:
        model.level = 0.5


CHANGES = (
    at_one_step, at_one_step_or_another, after_a_return, where_two_things_hold, in_an_error, of_the_class,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_set_where_a_condition_holds_is_told(
    tmp_path: Path, change: Callable[..., None]
) -> None:
    (line,) = told(tmp_path, Scaled(change))
    assert line.startswith(f"attribute {'level' if change is of_the_class else 'scale'!r} of the")


class Ended(Scaled):
    def on_epoch_end(self) -> None:
        self.scale = 1.0 / (2.0 + self.number + float(torch.rand(())))


class EndedBatch(Scaled):
    """What the end of a batch sets is read at its beginning."""

    def on_batch_start(self) -> None:
        self.started = self.sum + 1.0

    def on_batch_end(self) -> None:
        self.sum = float(self.layer.weight.sum())


def test_what_the_end_of_an_epoch_sets_and_a_step_reads_is_told(tmp_path: Path) -> None:
    (line,) = told(tmp_path, Ended())
    assert line.startswith("attribute 'scale'")


def test_what_the_end_of_a_batch_sets_and_its_beginning_reads_is_told(tmp_path: Path) -> None:
    (line,) = told(tmp_path, EndedBatch(sum=0.0))
    assert line.startswith("attribute 'sum'")


class Doubling(Scaled):
    """Calls a function that it has as an attribute."""

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if batch_idx == 2:
            self.function = torch.sin
        return super().training_step(self.function(batch), batch_idx)


def test_another_function_in_an_attribute_is_told(tmp_path: Path) -> None:
    (line,) = told(tmp_path, Doubling(function=torch.cos))
    assert "'function'" in line
    assert "cos" in line
    assert "sin" in line


def follows_a_size(model: Any, batch: torch.Tensor) -> None:
    if model.seen != model.number:
        model.seen = model.number
        model.table = model.number + 1.0


def in_both_cases(model: Any, batch: torch.Tensor) -> None:
    if model.number % 2:
        model.scale = 0.5
    else:
        model.scale = 0.25


def in_training(model: Any, batch: torch.Tensor) -> None:
    if model.training:
        model.scale = model.number + 1.0


def each_time(model: Any, batch: torch.Tensor) -> None:
    for _ in range(2):
        model.scale = model.number + 1.0


@pytest.mark.parametrize("change", [follows_a_size, in_both_cases, in_training, each_time])
def test_what_is_set_each_time_before_it_is_read_is_not_told(
    tmp_path: Path, change: Callable[..., None]
) -> None:
    class Before(Scaled):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            self.number = batch_idx
            change(self, batch)
            return super().training_step(batch, batch_idx)

    assert not told(tmp_path, Before())


class Shown(Scaled):
    """What the end of a batch sets is read at the end of the epoch."""

    def on_batch_end(self) -> None:
        self.last = float(self.layer.weight.sum())

    def on_epoch_end(self) -> None:
        assert self.last is not None


def test_what_is_read_after_it_is_set_is_not_told(tmp_path: Path) -> None:
    assert not told(tmp_path, Shown(last=0.0))


def test_names_are_found_by_what_surrounds_them() -> None:
    found = [set_at_times(one.__code__) for one in CHANGES]
    assert found == [frozenset({"scale"})] * (len(found) - 1) + [frozenset({"level"})]
    for one in (follows_a_size, in_both_cases, in_training, each_time):
        assert set_at_times(one.__code__) == frozenset()
