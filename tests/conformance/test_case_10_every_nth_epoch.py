"""Case 10: validation in every n-th epoch only.

As in Lightning, also where the run ends on max_steps: `validate_epochs` says "only". (With
`every(n, "epoch")` a run that is cut short ends with a validation.)
"""

from __future__ import annotations

from typing import Any

import pytest

from statemachine_trainer.loops import every
from tests.loops.outer_kit import Model, Trace, make_trainer, numbered

EITHER = [{"validate_epochs": 2}, {"validate_every": every(2, "epoch")}]


@pytest.mark.filterwarnings("ignore::statemachine_trainer.loops.mistakes.NeverValidated")
@pytest.mark.parametrize("epochs, expected", [(1, 0), (4, 2), (5, 2)])
@pytest.mark.parametrize("setting", EITHER, ids=str)
def test_every_second_epoch(epochs: int, expected: int, setting: dict[str, Any]) -> None:
    trainer = make_trainer(max_epochs=epochs, **setting)
    trace = Trace(trainer)
    trainer.fit(Model(), numbered(2), numbered(1))
    assert [epoch for epoch, _, _ in trace.validations] == [1, 3][:expected]


def test_every_third_epoch_and_a_run_that_ends_on_max_steps() -> None:
    trainer = make_trainer(max_steps=8, validate_epochs=3)
    trace = Trace(trainer)
    trainer.fit(Model(), numbered(2), numbered(1))
    assert trace.validations == [(2, 6, 6)]
    assert trainer.epoch == 4


def test_an_interval_of_epochs_and_a_run_that_ends_on_max_steps() -> None:
    trainer = make_trainer(max_steps=8, validate_every=every(3, "epoch"))
    trace = Trace(trainer)
    trainer.fit(Model(), numbered(2), numbered(1))
    assert trace.validations == [(2, 6, 6), (3, 8, 8)]
