"""A model's own `on_<state>` methods are called as long as it is the one that is trained."""

from __future__ import annotations

from tests.loops.outer_kit import Model, make_trainer, numbered


class Hooked(Model):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def on_epoch_end(self) -> None:
        self.heard.append("epoch_end")


def test_they_are_called_once_however_often_the_model_is_fitted() -> None:
    trainer, model = make_trainer(), Hooked()
    trainer.fit(model, numbered(1))
    trainer.fit(model, numbered(1), restart=True)
    trainer.loop.max_epochs = 2
    trainer.fit(model)
    assert model.heard == ["epoch_end"] * 3


def test_those_of_the_model_before_are_called_no_more() -> None:
    trainer, first, second = make_trainer(), Hooked(), Hooked()
    trainer.fit(first, numbered(1))
    trainer.fit(second, numbered(1))
    assert (first.heard, second.heard) == (["epoch_end"], ["epoch_end"])


def test_a_model_without_any_leaves_nothing_behind() -> None:
    trainer, hooked = make_trainer(), Hooked()
    trainer.fit(hooked, numbered(1))
    trainer.fit(Model(), numbered(1))
    assert hooked.heard == ["epoch_end"]
    assert trainer.board.subscriptions == []


def test_other_subscriptions_of_the_model_survive_a_fit_that_goes_on() -> None:
    trainer, model = make_trainer(), Hooked()
    trainer.fit(model, numbered(2), until="batch_end")
    trainer.on("epoch_end", model.on_epoch_end)
    trainer.fit()
    assert model.heard == ["epoch_end"] * 2
