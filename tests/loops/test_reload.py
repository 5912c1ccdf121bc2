"""Loaders that are made anew every n epochs."""

from __future__ import annotations

from typing import Any

import pytest

from statemachine_trainer.loops.loop_errors import SettingError
from tests.loops.outer_kit import Model, make_trainer, numbered


class Maker:
    """Makes batches that begin at 0, 10, 20, ... and counts how often."""

    def __init__(self, count: int = 2) -> None:
        self.made, self.count = 0, count

    def __call__(self) -> list[Any]:
        self.made += 1
        return numbered(self.count, start=10 * (self.made - 1))


@pytest.mark.parametrize(
    "every, expected",
    [
        (0, [0, 1] * 4),
        (1, [0, 1, 10, 11, 20, 21, 30, 31]),
        (2, [0, 1, 0, 1, 10, 11, 10, 11]),
        (3, [0, 1, 0, 1, 0, 1, 10, 11]),
    ],
)
def test_the_loader_is_made_anew_before_every_nth_epoch(every: int, expected: list[int]) -> None:
    trainer, model = make_trainer(max_epochs=4, reload_every=every), Model()
    trainer.fit(model, Maker())
    assert model.trained == expected


def test_validation_loaders_given_as_functions_are_made_anew_too() -> None:
    trainer, model = make_trainer(max_epochs=2, reload_every=1), Model()
    trainer.fit(model, numbered(1), {"made": Maker(1), "kept": numbered(1, start=7)})
    assert model.trained == [0, 0]
    assert model.validated == [0, 7, 10, 7]


def test_data_that_cannot_be_made_anew_are_refused_in_the_first_epoch() -> None:
    trainer, model = make_trainer(max_epochs=4, reload_every=2), Model()
    with pytest.raises(SettingError, match="give fit a function"):
        trainer.fit(model, numbered(1))
    assert (trainer.path, model.trained) == ("fit.epoch.epoch_start", [])


def test_a_pass_that_an_earlier_fit_left_is_not_replaced() -> None:
    trainer, model = make_trainer(max_steps=1, reload_every=1), Model()
    trainer.fit(model, Maker())
    trainer.loop.max_steps = 4
    trainer.fit()
    assert model.trained == [0, 1, 10, 11]


def test_the_same_function_given_again_goes_on() -> None:
    trainer, model, maker = make_trainer(max_steps=1), Model(), Maker()
    trainer.fit(model, maker)
    trainer.loop.max_steps = 2
    trainer.fit(model, maker)
    assert (model.trained, maker.made) == ([0, 1], 1)


def test_a_function_that_fails_can_be_mended() -> None:
    class Fragile(Maker):
        broken = False

        def __call__(self) -> list[Any]:
            if self.broken:
                raise OSError("no such file")
            return super().__call__()

    trainer, model, maker = make_trainer(max_epochs=3, reload_every=1), Model(), Fragile()
    trainer.on("epoch_end", lambda: setattr(maker, "broken", True), once=True)
    with pytest.raises(OSError, match="no such file"):
        trainer.fit(model, maker)
    maker.broken = False
    trainer.run()
    assert model.trained == [0, 1, 10, 11, 20, 21]
