"""What Lightning takes without a word is taken here, with the same result."""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from statemachine_trainer import Trainer
from statemachine_trainer.integrations import lightning
from statemachine_trainer.integrations.lightning.adapter import LeftOutWarning
from statemachine_trainer.loops.loop_errors import OptimizerError
from tests.integrations.lightning_kit import Classifier, assert_same_bits, both, data


def assert_same(kind: type[Any], *given: Any, **settings: Any) -> tuple[Any, Any]:
    theirs, ours = both(lambda notes: (kind(), []), *(given or (data, data)), **settings)
    assert_same_bits(theirs, ours)
    return theirs, ours


def test_a_batch_size_may_be_a_tensor() -> None:
    class TensorSize(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            size = torch.tensor(len(batch[0]))
            self.log("val_loss", self.loss(batch), batch_size=size)  # type: ignore[arg-type]

    theirs, ours = assert_same(TensorSize, max_epochs=2)
    assert ours.metrics["val_loss"] == pytest.approx(theirs.metrics["val_loss"])


@pytest.mark.parametrize("optimizers", [list, tuple])
def test_one_scheduler_may_stand_in_the_place_of_a_list(optimizers: Any) -> None:
    class Pair(Classifier):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            return optimizers([optimizer]), {"scheduler": schedule, "interval": "epoch"}

    if optimizers is tuple:  # Lightning takes lists alone; nothing is meant but the same
        trainer = Trainer(max_epochs=1, device="cpu", progress=False)
        trainer.fit(lightning.module(Pair()), data())
        assert trainer.context.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.09)
        return
    assert_same(Pair, max_epochs=2)


def test_validation_data_without_a_validation_step_are_left_out() -> None:
    class Bare(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(8, 3)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.warns(LeftOutWarning, match="Bare has no validation_step"):
        assert_same(Bare, max_epochs=2)


def test_empty_lists_of_loaders_are_none() -> None:
    class Empty(Classifier):
        def val_dataloader(self) -> Any:
            return []

    assert_same(Empty, data, max_epochs=2)
    assert_same(Classifier, data, list, max_epochs=2)


def test_the_trainer_is_evaluating_within_the_validation_of_a_fit() -> None:
    class Asking(Classifier):
        def forward(self, inputs: Tensor) -> Any:
            found = super().forward(inputs)
            return found if self.trainer.evaluating else found * 2

    theirs, ours = assert_same(Asking, max_epochs=2)
    assert ours.metrics["val_loss"] == pytest.approx(theirs.metrics["val_loss"])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_precision_has_the_name_that_it_has_in_lightning(precision: str) -> None:
    seen = []

    class Asking(Classifier):
        def on_train_start(self) -> None:
            seen.append((self.trainer.precision, type(self.trainer.precision_plugin).__name__))

    assert_same(Asking, data, max_epochs=1, precision=precision)
    assert seen[0] == seen[1]
    assert seen[0][0] == precision


def test_a_fit_without_an_optimizer_runs_and_changes_nothing() -> None:
    class NoOptimizer(Classifier):
        def configure_optimizers(self) -> Any:
            return None

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = self.loss(batch)
            self.log("loss", loss)
            return loss

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, ours = both(lambda notes: (NoOptimizer(), []), data, data, max_epochs=2)
    assert_same_bits(theirs, ours)
    assert ours.steps == theirs.steps


@pytest.mark.parametrize("name", ["limit_validation_batches", "validate_epochs"])
def test_limits_of_zero_leave_the_validation_out(name: str) -> None:
    trainer = Trainer(max_epochs=1, device="cpu", progress=False, limit_validation_batches=0)
    trainer.fit(lightning.module(Classifier()), data(), data())
    assert "val_loss" not in trainer.metrics


def test_names_of_metrics_are_those_of_lightning() -> None:
    class Naming(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = self.loss(batch)
            self.log("a", loss)
            self.log("b", loss, on_epoch=True, on_step=False)
            self.log_dict({"c": loss, "d": loss}, on_step=True, on_epoch=True)
            return loss

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            loss = self.loss(batch)
            self.log("e", loss)
            self.log("f", loss, on_step=True, on_epoch=True)
            self.log("g", loss, on_step=True, on_epoch=False)
            self.log(f"h/{dataloader_idx}", loss, add_dataloader_idx=False)

        def on_train_start(self) -> None:
            self.log("start", 3.0)

        def on_validation_epoch_end(self) -> None:
            self.log("i", 1.0)

        def on_train_epoch_end(self) -> None:
            self.log("j", 2.0)

    theirs, ours = both(
        lambda notes: (Naming(), []), data, lambda: [data(), data(20)], max_epochs=2
    )
    assert sorted(ours.metrics) == sorted(theirs.metrics)
    for name, value in theirs.metrics.items():
        assert ours.metrics[name] == pytest.approx(value, rel=1e-5), name


def test_errors_name_the_class_of_the_user() -> None:
    class Mistaken(Classifier):
        def configure_optimizers(self) -> Any:
            return "adam"

    with pytest.raises(OptimizerError) as caught:
        Trainer(max_epochs=1, device="cpu").fit(lightning.module(Mistaken()), data())
    assert "LightningGuest" not in str(caught.value)
