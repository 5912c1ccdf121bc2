"""Case 24: the unit of `max_steps`, with two optimizers and max_steps=3.

Lightning makes 4 steps. Here the unit has a name, and it is exact: 3 steps of the first optimizer, or
3 of all.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.loops.inner_kit import Batch, Pair, Signals, make_batches, make_trainer


@pytest.mark.parametrize(
    "settings, steps",
    [({}, [3, 3]), ({"count_steps_of": "first"}, [3, 3]), ({"count_steps_of": "all"}, [2, 1])],
    ids=str,
)
def test_it_is_exact(settings: dict[str, Any], steps: list[int]) -> None:
    trainer = make_trainer(max_epochs=None, max_steps=3, **settings)
    trainer.fit(Pair(lambda one, two: [one, two]), make_batches(10))
    assert trainer.steps == 3
    assert [slot.steps for slot in trainer.context.slots] == steps


class Validated(Pair):
    def validation_step(self, batch: Batch) -> None: ...


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_epoch_still_ends_with_its_validation(accumulate: int) -> None:
    trainer = make_trainer(
        max_epochs=None, max_steps=3, accumulate=accumulate, validate_every=100, sanity_batches=0
    )
    signals = Signals(trainer, "validation_end", "epoch_end", "fit_end")
    model = Validated(lambda one, two: [one, two])
    trainer.fit(model, make_batches(10), make_batches(1))
    assert signals.fired == ["validation_end", "epoch_end", "fit_end"]


def test_so_it_does_where_the_last_step_is_that_of_an_incomplete_window() -> None:
    trainer = make_trainer(
        max_epochs=None, max_steps=3, accumulate=4, validate_every=100, sanity_batches=0
    )
    signals = Signals(trainer, "validation_end", "epoch_end", "fit_end")
    model = Validated(lambda one, two: [one, two])
    trainer.fit(model, make_batches(10), make_batches(1))
    assert trainer.steps == 3
    assert signals.fired == ["validation_end", "epoch_end", "fit_end"]
