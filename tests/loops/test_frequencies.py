"""Optimizers that take turns by their frequencies."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.loops.inner_kit import (
    Pair,
    assert_same_weights,
    make_batches,
    make_trainer,
    pair_loss,
)


def turns(first: int, second: int) -> Any:
    def configure(one: Any, two: Any) -> Any:
        return [{"optimizer": one, "frequency": first}, {"optimizer": two, "frequency": second}]

    return configure


def test_each_has_as_many_batches_in_a_row_as_its_frequency() -> None:
    model = Pair(turns(1, 2))
    make_trainer().fit(model, make_batches(10))
    assert [index for _, index in model.ran] == [0, 1, 1, 0, 1, 1, 0, 1, 1, 0]


def test_trap_37_the_turns_run_on_over_the_epochs() -> None:
    model = Pair(turns(2, 1))
    make_trainer(max_epochs=3).fit(model, make_batches(4))
    assert [index for _, index in model.ran] == [0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1]
    assert [number for number, _ in model.ran] == [0, 1, 2, 3] * 3


def test_trap_37_the_schedulers_run_on_over_the_epochs_with_them() -> None:
    rates: list[float] = []

    def configure(one: Any, two: Any) -> Any:
        scheduler = torch.optim.lr_scheduler.StepLR(two, step_size=1, gamma=0.5)
        config = {"scheduler": scheduler, "interval": "step", "frequency": 2}
        return [
            {"optimizer": one, "frequency": 2},
            {"optimizer": two, "frequency": 1, "lr_scheduler": config},
        ]

    trainer = make_trainer(max_epochs=3)

    @trainer.on("batch_end")
    def note() -> None:
        rates.append(trainer.context.optimizers[1].param_groups[0]["lr"])

    trainer.fit(Pair(configure), make_batches(4))
    # It steps in batches 2, 5, 8 and 11 of the run; every second one of its own steps counts.
    assert rates == [0.05] * 5 + [0.025] * 6 + [0.0125]


def test_the_weights_are_those_of_a_plain_loop() -> None:
    batches = make_batches(4)
    expected = Pair(turns(2, 1))
    one, two = (config["optimizer"] for config in expected.configure_optimizers())
    for number, batch in enumerate(batches * 3):
        index = 0 if number % 3 < 2 else 1
        optimizer, frozen = (one, expected.two) if index == 0 else (two, expected.one)
        frozen.requires_grad_(False)
        loss = pair_loss(expected.one, expected.two, batch, index)
        optimizer.zero_grad()
        loss.backward()
        frozen.requires_grad_(True)
        optimizer.step()
    model = Pair(turns(2, 1))
    make_trainer(max_epochs=3).fit(model, batches)
    assert_same_weights(model, expected)


@pytest.mark.parametrize("max_steps", range(1, 6))
@pytest.mark.parametrize("which, counted", [("first", [0]), ("all", [0, 1])])
def test_max_steps_is_exact(max_steps: int, which: str, counted: list[int]) -> None:
    model = Pair(turns(1, 2))
    trainer = make_trainer(max_epochs=None, max_steps=max_steps, count_steps_of=which)
    trainer.fit(model, make_batches(4))
    assert trainer.steps == max_steps
    assert sum(trainer.context.slots[index].steps for index in counted) == max_steps
    last = [index for _, index in model.ran][-1]
    assert last in counted
