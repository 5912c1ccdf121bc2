"""A plain model has metrics by one argument, in training, validation and test."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection

from statemachine_trainer import Trainer
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.testing import assert_resumable
from tests.loops.inner_kit import Regression, make_batches, make_net, make_trainer

SGD = partial(torch.optim.SGD, lr=0.0)
MSE = torch.nn.functional.mse_loss


def fitted(metrics: Any, validation: Any = None) -> Trainer:
    trainer = make_trainer(max_epochs=2)
    trainer.fit(make_net(), make_batches(3), validation, loss=MSE, optimizer=SGD, metrics=metrics)
    return trainer


def mean_error(batches: Any) -> float:
    net = make_net()
    with torch.no_grad():
        errors = torch.cat([(net(x) - y).abs() for x, y in batches])
    return errors.mean().item()


def test_each_kind_of_step_has_its_own() -> None:
    validation = make_batches(2)
    trainer = fitted({"mae": MeanAbsoluteError()}, validation)
    assert trainer.metrics["mae"] == pytest.approx(mean_error(make_batches(3)))
    assert trainer.metrics["val_mae"] == pytest.approx(mean_error(validation))
    tested = trainer.test(trainer.model, validation, loss=MSE, metrics={"mae": MeanAbsoluteError()})
    assert tested["test_mae"] == pytest.approx(mean_error(validation))


@pytest.mark.parametrize(
    "metrics, names",
    [
        (MeanAbsoluteError(), {"MeanAbsoluteError"}),
        (MetricCollection({"mae": MeanAbsoluteError(), "mse": MeanSquaredError()}), {"mae", "mse"}),
        ({"bias": lambda output, targets: (output - targets).mean()}, {"bias"}),
        (MSE, {"mse_loss"}),
    ],
    ids=["one", "collection", "function by name", "function"],
)
def test_they_come_in_several_forms(metrics: Any, names: set[str]) -> None:
    found = set(fitted(metrics, make_batches(2)).metrics)
    assert found == {"loss", "val_loss"} | names | {f"val_{name}" for name in names}


def test_the_objects_given_are_left_alone() -> None:
    mine = MeanAbsoluteError()
    fitted({"mae": mine})
    assert mine.update_count == 0


def test_several_loaders_have_values_of_their_own() -> None:
    loaders = {"a": make_batches(1), "b": make_batches(3)}
    found = fitted({"mae": MeanAbsoluteError()}, loaders).metrics
    assert found["val_mae/a"] == pytest.approx(mean_error(loaders["a"]))
    assert found["val_mae/b"] == pytest.approx(mean_error(loaders["b"]))


@pytest.mark.parametrize(
    "metrics, said",
    [
        ({"mae": MeanAbsoluteError}, "the class MeanAbsoluteError"),
        ({"mae": 3}, "'mae' is 3"),
        ("accuracy", "is 'accuracy'"),
    ],
)
def test_what_is_no_metric_is_refused(metrics: Any, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        fitted(metrics)


def test_they_need_a_loss_and_a_plain_model() -> None:
    trainer, batches = make_trainer(), make_batches(1)
    with pytest.raises(SettingError, match="has a training_step of its own"):
        trainer.fit(Regression(), batches, loss=MSE, metrics=MSE)
    with pytest.raises(SettingError, match="was given no loss="):
        trainer.fit(make_net(), batches, optimizer=SGD, metrics=MSE)


def test_they_resume_anywhere() -> None:
    def make() -> Trainer:
        trainer = make_trainer(max_epochs=2)
        trainer.start(
            make_net(),
            make_batches(3),
            {"a": make_batches(2), "b": make_batches(2)},
            loss=MSE,
            optimizer=partial(torch.optim.SGD, lr=0.1),
            metrics={"mae": MeanAbsoluteError()},
        )
        return trainer

    assert_resumable(make, exhaustive=True)
