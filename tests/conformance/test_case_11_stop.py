"""Case 11: stopping in the middle of an epoch validates once. `stop` is an event that is posted."""

from __future__ import annotations

from typing import Any

import pytest

from tests.loops.outer_kit import Model, Trace, after, make_trainer, numbered


def test_stop_in_the_fifth_batch_of_ten() -> None:
    trainer = make_trainer(max_epochs=3)
    trace = Trace(trainer)
    trainer.on("forward", lambda t: t.stop(), when=lambda t: t.context.counts.batch == 4, once=True)
    trainer.fit(Model(), numbered(10), numbered(1))
    assert (trainer.steps, trainer.epoch) == (5, 1)
    assert trace.validations == [(0, 5, 5)]


@pytest.mark.parametrize("minimum, expected", [({"min_epochs": 3}, 3), ({"min_steps": 3}, 2)])
def test_a_minimum_holds_it_back_without_validating_more_often(
    minimum: dict[str, Any], expected: int
) -> None:
    trainer = make_trainer(max_epochs=3, **minimum)
    trace = Trace(trainer)
    after(trainer, 1, lambda trainer: trainer.stop())
    trainer.fit(Model(), numbered(2), numbered(1))
    assert len(trace.validations) == expected
