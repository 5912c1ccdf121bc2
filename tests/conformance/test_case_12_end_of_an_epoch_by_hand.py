"""Case 12: giving up the rest of an epoch.

Lightning: a hook returns -1, the batch is fetched but not trained, and no validation runs. Ours: the
event `end_epoch` is posted, it is taken before the next batch is fetched, and the epoch ends as any
other does, with its validation if one is due at its end.
"""

from __future__ import annotations

import pytest

from tests.loops.outer_kit import Model, Trace, make_trainer, numbered


@pytest.mark.parametrize(
    "epochs, stop_at, last, steps", [(2, 5, 4, 10), (4, 12, 9, 40)], ids=["cut", "whole"]
)
def test_an_epoch_ends_where_it_was_told_to(
    epochs: int, stop_at: int, last: int, steps: int
) -> None:
    trainer = make_trainer(max_epochs=epochs)
    trace = Trace(trainer)
    trainer.on(
        "batch_end",
        lambda trainer: trainer.post("end_epoch"),
        when=lambda trainer: trainer.context.counts.batch_in_epoch == stop_at,
    )
    trainer.fit(Model(), numbered(10), numbered(1))
    assert trainer.context.batch_idx in (0, last)
    assert (trainer.steps, trainer.epoch) == (steps, epochs)
    assert len(trace.validations) == epochs
