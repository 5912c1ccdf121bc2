"""`every=` of a subscription may count steps, epochs, samples or seconds of the run."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import nn

from statemachine_trainer import Trainer, every
from statemachine_trainer.loops.every import IntervalError
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
