"""Small models, data and a clock for the tests of the outer loops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from statemachine_trainer.loops.metrics.log import log
from statemachine_trainer.trainer import Trainer


def numbered(count: int, size: int = 2, start: int = 0) -> list[Tensor]:
    """Batches that are told apart by their content: batch number i is full of i."""
    return [torch.full((size, 1), float(number)) for number in range(start, start + count)]


def number_of(batch: Tensor) -> int:
    return int(batch[0, 0])


class Unsized:
    """Batches from an iterable that does not know how many there are."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self.batches = list(batches)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.batches)


class Model(nn.Module):
    """Notes the numbers of the batches that it trains on, validates, tests and predicts."""

    def __init__(self, lr: float = 0.01) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(1, 1)
        self.lr = lr
        self.trained: list[int] = []
        self.validated: list[int] = []
        self.tested: list[int] = []

    def forward(self, batch: Tensor) -> Tensor:
        return batch + 1

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        loss = self.layer(batch / 10).square().mean()
        self.trained.append(number_of(batch))
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> Any:
        log("value", batch.mean())
        self.validated.append(number_of(batch))

    def test_step(self, batch: Tensor, batch_idx: int) -> Any:
        log("test_value", batch.mean())
        self.tested.append(number_of(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def make_trainer(**settings: Any) -> Trainer:
    """A trainer on the CPU that shows nothing; of one epoch and without a sanity check unless told."""
    if not any(name.startswith("max_") for name in settings):
        settings["max_epochs"] = 1
    settings.setdefault("sanity_batches", 0)
    return Trainer(device="cpu", progress=False, **settings)


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Trace:
    """Notes where validations took place, and the order of batches and ends of epochs.

    `validations` holds (epoch, batches done, steps done) of each; `text` is a string of `b` (a batch
    was done), `V` (a validation was done), `|` (an epoch ended).
    """

    def __init__(self, trainer: Trainer) -> None:
        self.validations: list[tuple[int, int, int]] = []
        self.text = ""
        trainer.on("batch_end", lambda: self._note("b"), priority=-1)
        trainer.on("epoch.validation:exit", self._validated)
        trainer.on("epoch_end", lambda: self._note("|"), priority=-1)

    def _note(self, letter: str) -> None:
        self.text += letter

    def _validated(self, trainer: Trainer) -> None:
        self._note("V")
        counts = trainer.context.counts
        self.validations.append((counts.epoch, counts.batch, counts.step))

    @property
    def batches(self) -> list[int]:
        """Batches done at each validation."""
        return [batches for _, batches, _ in self.validations]


def after(trainer: Trainer, batches: int, action: Any, *, name: str = "batch_end") -> None:
    """Call `action` once, when so many batches of the run are done."""
    trainer.on(
        name, action, when=lambda trainer: trainer.context.counts.batch == batches, once=True
    )
