"""What is logged at the start of a pass, before its first state works, counts for that pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from statemachine_trainer import Trainer, log
from statemachine_trainer.testing import assert_resumable

BATCHES = [torch.ones(1, 1)] * 3


class Net(nn.Module):
    """Logs the number of the epoch at its start."""

    log: Any  # lent by the trainer

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        log("x", 1.0)
        loss: torch.Tensor = self.layer(batch).sum()
        return loss

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        log("v", 1.0)

    test_step = validation_step

    def on_epoch_start(self, trainer: Trainer) -> None:
        self.log("number", float(trainer.epoch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def per_epoch(trainer: Trainer) -> list[dict[str, float]]:
    found: list[dict[str, float]] = []
    trainer.on("epoch_end:exit", lambda trainer: found.append(dict(trainer.metrics)))
    return found


@pytest.mark.parametrize("validation", [None, BATCHES])
def test_at_the_start_of_an_epoch(validation: Any) -> None:
    trainer = Trainer(max_epochs=2, progress=False)
    found = per_epoch(trainer)
    trainer.fit(Net(), BATCHES, validation)
    assert [one["number"] for one in found] == [0.0, 1.0]


def test_at_the_start_of_the_fit() -> None:
    trainer = Trainer(max_epochs=2, progress=False)
    found = per_epoch(trainer)
    trainer.on("fit_start", lambda trainer: log("begun", 5.0))
    trainer.fit(Net(), BATCHES)
    assert [one["begun"] for one in found] == [5.0, 5.0]  # measured in the first epoch


def test_at_the_start_of_a_test() -> None:
    trainer = Trainer(progress=False)
    trainer.on("test_start", lambda trainer: log("begun", 5.0))
    assert trainer.test(Net(), BATCHES) == {"begun": 5.0, "v": 1.0}


def test_an_average_begins_anew_with_each_epoch() -> None:
    trainer = Trainer(max_epochs=2, progress=False)
    found = per_epoch(trainer)
    trainer.on("epoch_start", lambda trainer: log("y", 10.0 * trainer.epoch))
    trainer.on("batch_end", lambda trainer: log("y", 1.0))
    trainer.fit(Net(), BATCHES)
    assert [one["y"] for one in found] == [3 / 4, 13 / 4]


def test_it_is_counted_after_every_stop() -> None:
    def make_trainer() -> Trainer:
        trainer = Trainer(max_epochs=3, progress=False)
        trainer.on("epoch_start", lambda trainer: log("y", 10.0 * trainer.epoch))
        trainer.on("batch_end", lambda trainer: log("y", 1.0))
        trainer.start(Net(), BATCHES, BATCHES[:1])
        return trainer

    assert_resumable(make_trainer, examples=25, seed=0)
