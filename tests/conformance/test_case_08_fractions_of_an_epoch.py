"""Case 8: validation at a fraction of an epoch.

Departure from Lightning: the end of the epoch belongs to the fraction also where the batches do not
divide evenly, so 10 batches and 0.3 are validated after 3, 6, 9 and 10.
"""

from __future__ import annotations

import pytest

from tests.loops.outer_kit import Model, Trace, make_trainer, numbered


@pytest.mark.parametrize("epochs", [1, 2, 3])
@pytest.mark.parametrize("parts", [1, 3, 4])
def test_a_part_of_an_epoch_makes_as_many_validations_as_there_are_parts(
    epochs: int, parts: int
) -> None:
    trainer = make_trainer(max_epochs=epochs, validate_every=1 / parts)
    trace = Trace(trainer)
    trainer.fit(Model(), numbered(64), numbered(1))
    assert len(trace.validations) == epochs * parts


def test_the_end_of_the_epoch_belongs_to_the_fraction() -> None:
    trainer = make_trainer(validate_every=0.3)
    trace = Trace(trainer)
    trainer.fit(Model(), numbered(10), numbered(1))
    assert trace.batches == [3, 6, 9, 10]
