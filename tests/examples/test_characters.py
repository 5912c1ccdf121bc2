"""A character model on Python's own documentation, trained with truncated backpropagation."""

from __future__ import annotations

from functools import partial
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statemachine_trainer import BatchLoop, EpochLoop, FitLoop, Trainer, log
from statemachine_trainer.testing import assert_resumable

Batch = tuple[Tensor, Tensor]

CODES = torch.tensor([min(ord(c), 127) for name in sorted(topics) for c in topics[name]])
TRAIN, VALIDATION = CODES[:100_000], CODES[100_000:115_000]


def batches(codes: Tensor, rows: int, length: int) -> list[Batch]:
    """Rows of text side by side, `length` characters of each in a batch: (rows, length)."""
    columns = (len(codes) - 1) // rows
    inputs, targets = (codes[start:][: rows * columns].view(rows, columns) for start in (0, 1))
    starts = range(0, columns - length + 1, length)
    return [(inputs[:, at : at + length], targets[:, at : at + length]) for at in starts]


class Characters(nn.Module):
    def __init__(self, size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 16)
        self.cells = nn.LSTM(16, size, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(size, 128))

    def loss(self, batch: Batch, state: Any = None) -> tuple[Tensor, Any]:
        found, state = self.cells(self.embedding(batch[0]), state)
        return F.cross_entropy(self.head(found).transpose(1, 2), batch[1]), state

    def training_step(self, batch: Batch, hiddens: Any) -> dict[str, Any]:
        loss, hiddens = self.loss(batch, hiddens)
        log("loss", loss)
        return {"loss": loss, "hiddens": hiddens}

    def validation_step(self, batch: Batch) -> None:
        log("val_loss", self.loss(batch)[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def make_trainer(**settings: Any) -> Trainer:
    loop = FitLoop(max_epochs=1, epoch=EpochLoop(batch=BatchLoop(**settings)))
    return Trainer(loop, progress=False, seed=0)


def mean_loss(rows: int, **settings: Any) -> tuple[float, int, int]:
    """Validation loss, the mean of three seeds, with the steps and the characters of a run."""
    losses = []
    data = batches(TRAIN, rows, 192)
    for seed in range(3):
        torch.manual_seed(seed)
        trainer = make_trainer(**settings)
        trainer.fit(Characters(64), data, batches(VALIDATION, 10, 500))
        losses.append(trainer.metrics["val_loss"])
    return sum(losses) / 3, trainer.steps, sum(inputs.numel() for inputs, _ in data)


@pytest.mark.slow
def test_the_loss_with_splits_is_near_that_without() -> None:
    whole, steps, characters = mean_loss(rows=4)
    unigram = torch.distributions.Categorical(CODES.bincount(minlength=128).float()).entropy()
    assert whole < unigram - 0.4
    for carry in (False, True):
        split, as_many, seen = mean_loss(rows=12, split_steps=64, carry_hiddens=carry)
        assert abs(as_many - steps) <= 0.02 * steps
        assert abs(seen - characters) <= 0.02 * characters
        assert split < 1.05 * whole


def start(carry_hiddens: bool) -> Trainer:
    torch.manual_seed(0)
    trainer = make_trainer(split_steps=3, carry_hiddens=carry_hiddens)
    trainer.loop["epoch"].validate_every = 2
    model = Characters(4, dropout=0.2)
    trainer.start(model, batches(CODES[:60], 2, 8), batches(CODES[60:100], 2, 8))
    return trainer


@pytest.mark.parametrize("carry_hiddens", [False, True])
def test_it_is_resumable_between_any_two_splits(carry_hiddens: bool) -> None:
    report = assert_resumable(partial(start, carry_hiddens), exhaustive=True)
    assert len(report.tried) == report.possible > 30
    assert report.unwritable == 0
