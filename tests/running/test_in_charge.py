"""While a machine works somebody is in charge of it: `log` is at hand, the clock runs, limits are those of now."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from statemachine_trainer.loops.metrics.log import NotLogging, log
from statemachine_trainer.machine.errors import NotStarted
from tests.loops.outer_kit import Clock, Model, make_trainer, numbered


class Logging(Model):
    """Logs by `self.log`, which a plain module does not have."""

    log: Any
    fails = False

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        self.log("size", float(len(batch)))
        if self.fails:
            raise ValueError("as told")
        return super().training_step(batch, batch_idx)


def test_a_model_without_log_is_lent_one_for_as_long_as_it_runs() -> None:
    trainer, model = make_trainer(), Logging()
    trainer.fit(model, numbered(3), until="epoch_end")
    assert trainer.metrics["size"] == 2.0
    assert not hasattr(model, "log")
    trainer.run()
    assert not hasattr(model, "log")


def test_it_is_taken_back_where_the_model_fails() -> None:
    trainer, model = make_trainer(), Logging()
    model.fails = True
    with pytest.raises(ValueError, match="as told"):
        trainer.fit(model, numbered(3))
    assert not hasattr(model, "log")


def test_a_model_that_has_log_keeps_its_own() -> None:
    class Own(Model):
        def log(self, name: str, value: float) -> None:
            self.logged = (name, value)

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            self.log("mine", 1.0)
            return super().training_step(batch, batch_idx)

    trainer, model = make_trainer(), Own()
    trainer.fit(model, numbered(1))
    assert model.logged == ("mine", 1.0)
    assert trainer.metrics == {}


class LoggingSeveral(Model):
    """Logs by `self.log_dict`, which a plain module does not have either."""

    log_dict: Any

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        self.log_dict({"size": float(len(batch)), "largest": batch.max()}, reduce="max")
        return super().training_step(batch, batch_idx)


def test_a_model_is_lent_log_dict_too_and_keeps_one_of_its_own() -> None:
    class Own(LoggingSeveral):
        def __init__(self) -> None:
            super().__init__()
            self.mine: list[dict[str, Any]] = []
            self.log_dict = lambda values, **_settings: self.mine.append(values)

    trainer, model = make_trainer(), LoggingSeveral()
    trainer.fit(model, numbered(3), until="epoch_end")
    assert trainer.metrics == {"size": 2.0, "largest": 2.0}
    assert not hasattr(model, "log_dict")
    trainer.run()
    assert "log_dict" not in vars(model)
    trainer, own = make_trainer(), Own()
    trainer.fit(own, numbered(1))
    assert [[*one] for one in own.mine] == [["size", "largest"]]
    assert trainer.metrics == {}


@pytest.mark.parametrize("taken", ["log", "log_dict"])
def test_a_layer_of_the_name_of_one_stays_and_the_other_is_lent(taken: str) -> None:
    other = "log_dict" if taken == "log" else "log"

    class Both(Model):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(taken, torch.nn.Identity())

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            lent = getattr(self, other)
            lent({"size": 2.0}) if other == "log_dict" else lent("size", 2.0)
            return super().training_step(batch, batch_idx)

    trainer, model = make_trainer(), Both()
    trainer.fit(model, numbered(1))
    assert trainer.metrics == {"size": 2.0}
    assert isinstance(getattr(model, taken), torch.nn.Identity)
    assert not hasattr(model, other)


def test_between_two_moments_nobody_is_in_charge() -> None:
    trainer = make_trainer()
    for moment in trainer.moments(Logging(), numbered(1)):
        if moment.event == "batch_complete":
            with pytest.raises(NotLogging):
                log("outside", 1.0)


def test_the_clock_stands_while_nobody_is_in_charge() -> None:
    trainer, clock = make_trainer(), Clock()
    trainer.start(Model(), numbered(2))
    context, begun = trainer.context, trainer.context.read_clock()
    context.clock = clock
    trainer.on("batch_end", lambda: setattr(clock, "now", clock.now + 1))
    trainer.run(until="batch_end")
    clock.now += 1000
    assert context.read_clock() == pytest.approx(begun + 1)
    trainer.run()
    assert context.read_clock() == pytest.approx(begun + 2)


def test_a_limit_that_is_changed_in_a_pause_holds() -> None:
    trainer, model = make_trainer(max_epochs=5), Model()
    trainer.fit(model, numbered(2), until="batch_end")
    trainer.loop.max_epochs = 1
    trainer.run()
    assert model.trained == [0, 1]


def test_a_fit_trains_where_gradients_are_off() -> None:
    trainer, model = make_trainer(), Model()
    before = model.layer.weight.clone()
    with torch.no_grad():
        trainer.fit(model, numbered(2, start=1))
        assert not torch.is_grad_enabled()
    assert not torch.equal(before, model.layer.weight)


@pytest.mark.parametrize("call", ["run", "step"])
def test_nobody_can_be_in_charge_of_what_was_not_started(call: str) -> None:
    with pytest.raises(NotStarted, match="Nothing was started"):
        getattr(make_trainer(), call)()
