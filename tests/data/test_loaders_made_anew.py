"""Functions that make other data in other epochs: a resumed run makes the same ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from statemachine_trainer import Trainer
from statemachine_trainer.testing import assert_resumable

MakeLoader = Callable[[], Any]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        outputs: torch.Tensor = self.layer(batch[0])
        return outputs.square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def loader(size: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(float(size))[:, None]), 2, shuffle=True)


def by_epoch(trainer: Trainer) -> MakeLoader:
    return lambda: loader(4 + 2 * trainer.epoch)


def by_a_count_of_its_own(_trainer: Trainer) -> MakeLoader:
    calls = []

    def make() -> DataLoader[Any]:
        calls.append(1)
        return loader(2 + 2 * len(calls))

    return make


def at_random(_trainer: Trainer) -> MakeLoader:
    rng = random.Random(4)
    return lambda: loader(2 * rng.randint(2, 5))


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("maker", [by_epoch, by_a_count_of_its_own, at_random])
def test_a_resumed_run_makes_the_same_loaders(
    maker: Callable[[Trainer], MakeLoader], every: int
) -> None:
    def make() -> Trainer:
        torch.manual_seed(0)
        trainer = Trainer(max_epochs=4, progress=False, reload_every=every, device="cpu")
        trainer.start(Net(), maker(trainer))
        return trainer

    report = assert_resumable(make, examples=6, seed=every)
    assert report.runs == 6
