"""Case 9: an interval of batches runs on over the borders of epochs.

Departure from Lightning: an int is always counted over the run, so no gating by epochs has to be
switched off for that, and an interval longer than an epoch is no error: it is due later.
"""

from __future__ import annotations

import pytest

from tests.loops.outer_kit import Model, Trace, make_trainer, numbered


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_third_batch_of_epochs_of_four(accumulate: int) -> None:
    trainer = make_trainer(max_epochs=3, validate_every=3, accumulate=accumulate)
    trace = Trace(trainer)
    trainer.fit(Model(), numbered(4), numbered(1))
    assert trace.batches == [3, 6, 9, 12]
    assert trainer.steps == 12 // accumulate


def test_an_interval_longer_than_an_epoch_is_due_in_a_later_one() -> None:
    trainer = make_trainer(max_epochs=3, validate_every=25)
    trace = Trace(trainer)
    trainer.fit(Model(), numbered(10), numbered(1))
    assert trace.validations == [(2, 25, 25)]
