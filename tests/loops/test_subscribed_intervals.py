"""`every=` of a subscription may count steps, epochs, samples or seconds of the run."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from statemachine_trainer import Checkpoints, Trainer, every
from statemachine_trainer.intervals import IntervalError
from statemachine_trainer.snapshot import decode, encode

BATCHES = [(torch.full((4, 2), float(i)), torch.zeros(4, 1)) for i in range(6)]


def started(seen: list[int], **options: Any) -> Trainer:
    torch.manual_seed(0)
    trainer = Trainer(max_epochs=2, accumulate=2, progress=False)
    trainer.on("batch_end", lambda trainer: seen.append(trainer.context.counts.batch), **options)
    sgd = torch.optim.SGD
    trainer.start(nn.Linear(2, 1), BATCHES, loss=nn.functional.mse_loss, optimizer=sgd)
    return trainer


@pytest.mark.parametrize(
    "interval, batches",
    [
        (every(2, "step"), [4, 8, 12]),
        (every(8, "sample"), [2, 4, 6, 8, 10, 12]),
        ("4 batches", [4, 8, 12]),
        (0.5, [3, 6, 9, 12]),
        (timedelta(hours=1), []),
        (5, [5, 10]),
    ],
)
def test_a_receiver_is_called_when_its_interval_is_due(
    interval: object, batches: list[int]
) -> None:
    seen: list[int] = []
    started(seen, every=interval).run()
    assert seen == batches


def test_what_the_interval_remembers_survives_a_stop() -> None:
    whole: list[int] = []
    started(whole, every=every(2, "step")).run()
    first: list[int] = []
    trainer = started(first, every=every(2, "step"))
    trainer.run(until=lambda trainer: trainer.context.counts.batch == 5)
    saved = encode(trainer.state_dict())
    second: list[int] = []
    resumed = started(second, every=every(2, "step"))
    resumed.load_state_dict(decode(*saved))
    resumed.run()
    assert first + second == whole


def test_an_interval_that_means_nothing_is_refused_at_once() -> None:
    with pytest.raises(IntervalError, match="every"):
        started([], every="now and then")


@pytest.mark.parametrize("begun", [0, 2])
def test_samples_that_nobody_counted_from_the_beginning_are_an_error_and_not_never_due(
    begun: int,
) -> None:
    trainer = started([])
    trainer.run(until=lambda trainer: trainer.context.counts.batch == begun)
    late = trainer.on("batch_end", lambda: None, every="8 samples")
    with pytest.raises(IntervalError, match=r"none were counted.*Subscribe before the fit starts"):
        trainer.run()
    late.cancel()
    assert trainer.run() == "fit_done"


class Opaque:
    """A batch that does not tell how many samples it has."""


class Own(nn.Linear):
    def training_step(self, batch: object) -> torch.Tensor:
        loss: torch.Tensor = self(torch.ones(4, 2)).mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_samples_of_batches_that_do_not_tell_their_number_are_an_error_and_not_never_due() -> None:
    trainer = Trainer(max_epochs=1, progress=False)
    trainer.on("batch_end", lambda: None, every="8 samples")
    with pytest.raises(IntervalError, match=r"no tensor with a dimension in a Opaque.*by batches"):
        trainer.fit(Own(2, 1), [Opaque()] * 6)
    assert trainer.path == "fit.epoch.batch.batch_end"


def test_checkpoints_by_samples_of_such_batches_are_an_error_too(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run", every="8 samples", at_end=False)
    trainer = Trainer(max_epochs=1, progress=False, checkpoints=checkpoints)
    with pytest.raises(IntervalError, match="Go by batches or steps"):
        trainer.fit(Own(2, 1), [Opaque()] * 6)
