"""Prediction: what the model answers, batch by batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from statemachine_trainer.data import BadSource
from statemachine_trainer.loops import PredictionLoop
from statemachine_trainer.loops.mistakes import ShuffledPredictions
from statemachine_trainer.machine import Driver
from statemachine_trainer.trainer import Trainer
from tests.loops.outer_kit import Model, Unsized, make_trainer, numbered


def numbers(predictions: list[Any]) -> list[float]:
    return [one.mean().item() for one in predictions]


def test_a_model_predicts_by_its_forward() -> None:
    assert numbers(make_trainer().predict(Model(), numbered(3))) == [1.0, 2.0, 3.0]


def test_of_a_pair_the_inputs_are_predicted() -> None:
    data = [(batch, "a target") for batch in numbered(2)]
    assert numbers(make_trainer().predict(Model(), data)) == [1.0, 2.0]


def test_a_predict_step_takes_the_place_of_forward() -> None:
    class Own(Model):
        def predict_step(self, batch: torch.Tensor, batch_idx: int, dataloader_idx: int) -> Any:
            return {"sum": batch.sum(), "where": (dataloader_idx, batch_idx)}

    found = make_trainer().predict(Own(), numbered(2))
    assert [one["where"] for one in found] == [(0, 0), (0, 1)]


def test_several_loaders_make_a_list_each() -> None:
    data = {"a": numbered(2), "b": Unsized(numbered(1, start=5))}
    first, second = make_trainer().predict(Model(), data)
    assert (numbers(first), numbers(second)) == ([1.0, 2.0], [6.0])


def test_predictions_have_no_gradient_and_the_modes_are_put_back() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.frozen = nn.Linear(1, 1), nn.Dropout().eval()

        def forward(self, batch: torch.Tensor) -> Any:
            assert not self.training
            return self.layer(batch)

    model = Own()
    (found,) = make_trainer().predict(model, numbered(1))
    assert not found.requires_grad
    assert (model.training, model.frozen.training) == (True, False)


def test_the_limit_holds() -> None:
    assert len(make_trainer(limit_predict_batches=2).predict(Model(), numbered(3))) == 2


def test_a_receiver_may_take_care_of_the_predictions_with_their_batches() -> None:
    trainer = make_trainer()
    written: list[tuple[float, float]] = []
    trainer.on(
        "predict_step:exit",
        lambda t: written.append((t.context.batch.mean().item(), t.context.output.mean().item())),
    )
    trainer.predict(Model(), numbered(2))
    assert written == [(0.0, 1.0), (1.0, 2.0)]


def test_a_loop_that_keeps_nothing_predicts_all_the_same() -> None:
    loop = PredictionLoop(keep=False)
    assert Driver(loop, name="predict").machine is not None
    assert loop.predictions == []


def test_a_prediction_that_raised_goes_on_and_loses_none() -> None:
    class Fragile(Model):
        broken = True

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            if self.broken and batch[0, 0] == 1:
                raise ValueError("a mistake")
            return super().forward(batch)

    trainer, model = make_trainer(), Fragile()
    with pytest.raises(ValueError, match="a mistake"):
        trainer.predict(model, numbered(3))
    model.broken = False
    trainer.run()
    assert numbers(trainer.driver.root.predictions[0]) == [1.0, 2.0, 3.0]  # type: ignore[attr-defined]
    assert model.training


def test_predictions_of_a_loader_that_shuffles_are_warned_of() -> None:
    data = TensorDataset(torch.arange(8.0).unsqueeze(1))
    with pytest.warns(ShuffledPredictions, match="not in the order of the data"):
        Trainer(progress=False).predict(nn.Identity(), DataLoader(data, 4, shuffle=True))
    with pytest.raises(
        BadSource, match=r"without shuffle=True.*DataLoader\(inputs, batch_size=32\)"
    ):
        Trainer(progress=False).predict(nn.Identity(), torch.arange(8.0))
