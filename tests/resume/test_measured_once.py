"""A metric is known with the moment at which it was measured: who acts on it acts on each value once."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from statemachine_trainer import Best, Checkpoints, EarlyStopping, Retention, Trainer, log
from statemachine_trainer.callbacks.checkpoints import OtherWeights
from statemachine_trainer.testing import assert_resumable


class Watched(nn.Module):
    """Logs in each validation a value that gets better, and in training one in every other epoch."""

    def __init__(self, monitor: str = "val", *, strict: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 1)
        self.monitor, self.strict = monitor, strict
        self.looks: torch.Tensor
        self.register_buffer("looks", torch.zeros(()))

    def training_step(self, batch: torch.Tensor, batch_idx: int, trainer: Trainer) -> torch.Tensor:
        if trainer.epoch % 2 == 0:
            log("now_and_then", 1.0 / (trainer.epoch + 1))
        loss: torch.Tensor = (self.layer(batch) - 1).pow(2).mean()
        return loss

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.looks += 1
        log("val", 1.0 / self.looks)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        plateau = ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        config = {"scheduler": plateau, "monitor": self.monitor, "strict": self.strict}
        return {"optimizer": optimizer, "lr_scheduler": config}


BATCHES = [torch.ones(1, 2)] * 3


def rate(trainer: Trainer) -> float:
    found: float = trainer.context.optimizers[0].param_groups[0]["lr"]
    return found


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("settings", [{"validate_epochs": 4}, {"validate_every": "4 epochs"}])
def test_an_epoch_without_a_validation_is_no_bad_one(
    strict: bool, settings: dict[str, Any]
) -> None:
    trainer = Trainer(max_epochs=12, progress=False, sanity_batches=0, **settings)
    trainer.fit(Watched(strict=strict), BATCHES, BATCHES[:1])
    assert rate(trainer) == 1.0


def test_a_value_of_training_that_is_not_logged_in_an_epoch_is_not_new_either() -> None:
    trainer = Trainer(max_epochs=6, progress=False)
    trainer.fit(Watched("now_and_then"), BATCHES)
    assert rate(trainer) == 1.0


def test_early_stopping_looks_at_a_value_of_training_once() -> None:
    stopping = EarlyStopping("now_and_then", patience=1)
    trainer = Trainer(max_epochs=6, progress=False, callbacks=[stopping])
    trainer.fit(Watched("now_and_then"), BATCHES)
    assert (trainer.epoch, stopping.reason) == (6, None)


def test_early_stopping_looks_at_a_value_once_where_validations_log_it_now_and_then() -> None:
    class Seldom(Watched):
        def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
            self.looks += 1
            log("always", 1.0)
            if self.looks % 2:
                log("val", 1.0 / self.looks)

    stopping = EarlyStopping("val", patience=1, check="validation_end")
    trainer = Trainer(max_epochs=6, progress=False, sanity_batches=0, callbacks=[stopping])
    trainer.fit(Seldom(), BATCHES, BATCHES[:1])
    assert (trainer.epoch, stopping.reason) == (6, None)


def test_what_was_looked_at_is_known_after_every_stop() -> None:
    def make_trainer() -> Trainer:
        trainer = Trainer(max_epochs=5, progress=False, validate_epochs=2, sanity_batches=0)
        trainer.start(Watched(), BATCHES, BATCHES[:1])
        return trainer

    assert_resumable(make_trainer, examples=25, seed=0)


# -- Weights that are put in for a validation -----------------------------------------------------


class PutsIn:
    """Replaces the weights for each validation, as averages do."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.change = change

    def on_validation_start(self, trainer: Trainer) -> None:
        self.own = [p.detach().clone() for p in trainer.model.parameters()]
        self._put([self.change(p) for p in self.own], trainer)

    def on_exit_validation(self, trainer: Trainer) -> None:
        self._put(self.own, trainer)

    def _put(self, values: Sequence[torch.Tensor], trainer: Trainer) -> None:
        with torch.no_grad():
            for parameter, value in zip(trainer.model.parameters(), values, strict=True):
                parameter.copy_(value)


def fit_with(callback: object, folder: Path) -> list[dict[str, Any]]:
    checkpoints = Checkpoints(folder, retention=Retention(last=9, best=Best("val")))
    trainer = Trainer(
        max_epochs=2,
        progress=False,
        sanity_batches=0,
        callbacks=[callback],
        checkpoints=checkpoints,
    )
    trainer.fit(Watched(), BATCHES, BATCHES[:1])
    manifests = sorted(folder.glob("0*/manifest.json"))
    found: list[dict[str, Any]] = [json.loads(one.read_text())["metadata"] for one in manifests]
    return found


def test_a_checkpoint_says_which_metrics_are_not_those_of_its_weights(tmp_path: Path) -> None:
    with pytest.warns(OtherWeights, match="'val' was measured with other weights") as warned:
        written = fit_with(PutsIn(lambda one: one / 2), tmp_path)
    assert [one["of_other_weights"] for one in written] == [["val"]] * len(written)
    assert len([one for one in warned if one.category is OtherWeights]) == 1


def test_weights_that_were_put_in_and_are_the_same_change_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = fit_with(PutsIn(lambda one: one.clone()), tmp_path)
    assert [one["of_other_weights"] for one in written] == [[]] * len(written)
