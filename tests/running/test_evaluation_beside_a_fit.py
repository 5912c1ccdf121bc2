"""An evaluation beside a paused fit takes the stage, and gives it back however it ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from statemachine_trainer.machine.errors import AlreadyRunning, NotStarted
from tests.loops.outer_kit import Model, make_trainer, numbered


class Drawing(Model):
    """Trains with random numbers, and draws some in validation too."""

    fails = False

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) * torch.rand(())

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        torch.rand(100)
        if self.fails and batch_idx == 1:
            raise ValueError("as told")
        return super().validation_step(batch, batch_idx)


def trained(**evaluation: bool) -> Drawing:
    """A model after four batches; beside the second one it is evaluated, or that fails."""
    trainer, model = make_trainer(), Drawing()
    torch.manual_seed(1)
    trainer.fit(model, numbered(4, start=1), until=lambda trainer: trainer.steps == 2)
    where = trainer.path
    if evaluation.get("fails"):
        model.fails = True
        with pytest.raises(ValueError, match="as told"):
            trainer.validate(data=numbered(3))
    elif evaluation:
        trainer.validate(data=numbered(3))
    assert (trainer.path, trainer.driver.name) == (where, "fit")
    trainer.run()
    return model


@pytest.mark.parametrize("fails", [False, True])
def test_the_fit_goes_on_to_the_same_bits(fails: bool) -> None:
    assert torch.equal(trained().layer.weight, trained(fails=fails).layer.weight)


def test_one_that_failed_can_be_called_again() -> None:
    trainer, model = make_trainer(), Drawing()
    trainer.fit(model, numbered(2), until="batch_end")
    model.fails = True
    with pytest.raises(ValueError, match="as told"):
        trainer.validate(data=numbered(3))
    model.fails = False
    assert trainer.validate(data=numbered(3)) == {"value": 1.0}


def test_counters_are_those_of_the_fit_and_metrics_those_of_what_ran_last() -> None:
    trainer, model = make_trainer(max_epochs=2), Model()
    trainer.fit(model, numbered(3))
    trainer.test(model, numbered(5))
    assert (trainer.epoch, trainer.steps) == (2, 6)
    assert trainer.driver.name == "test"
    assert trainer.metrics == {"test_value": 2.0}


def test_a_receiver_of_a_fit_may_evaluate_but_not_an_evaluation_itself() -> None:
    trainer, model = make_trainer(), Model()
    found: list[float] = []
    trainer.on("batch_end", lambda: found.append(trainer.validate(data=numbered(3))["value"]))
    trainer.fit(model, numbered(2))
    assert (found, model.trained) == ([1.0, 1.0], [0, 1])
    trainer.on("validate.validation_step", lambda: trainer.validate(data=numbered(1)))
    with pytest.raises(AlreadyRunning):
        trainer.validate(data=numbered(3))


def test_without_a_model_there_is_nothing_to_evaluate() -> None:
    with pytest.raises(NotStarted, match="before the first fit"):
        make_trainer().predict(data=numbered(1))
