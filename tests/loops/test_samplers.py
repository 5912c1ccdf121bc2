"""`set_epoch`: samplers and data sets that have it are told the number of the epoch."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, Sampler, TensorDataset

from tests.loops.outer_kit import Model, make_trainer, numbered


class First(Model):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch[0], batch_idx)


class Told(Sampler[int]):
    def __init__(self, count: int) -> None:
        self.count = count
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Any:
        return iter(range(self.count))

    def __len__(self) -> int:
        return self.count


DATA = TensorDataset(torch.arange(4.0).unsqueeze(1))


def test_a_sampler_is_told_the_epoch_before_each_pass() -> None:
    sampler = Told(4)
    make_trainer(max_epochs=3).fit(First(), DataLoader(DATA, sampler=sampler))
    assert sampler.epochs == [0, 1, 2]


def test_a_sampler_is_not_told_again_where_a_fit_goes_on_within_a_pass() -> None:
    sampler = Told(4)
    trainer = make_trainer(max_steps=2)
    trainer.fit(First(), DataLoader(DATA, sampler=sampler))
    trainer.loop.max_steps = 6
    trainer.fit()
    assert sampler.epochs == [0, 2]


def test_a_distributed_sampler_shuffles_anew_in_each_epoch() -> None:
    data = TensorDataset(torch.arange(32.0).unsqueeze(1))
    sampler: Any = DistributedSampler(data, num_replicas=1, rank=0, shuffle=True)
    model = First()
    make_trainer(max_epochs=2).fit(model, DataLoader(data, sampler=sampler))
    first, second = model.trained[:32], model.trained[32:]
    assert sorted(first) == sorted(second) == list(range(32))
    assert first != second


def test_a_list_with_set_epoch_is_told_too() -> None:
    class Batches(list[Any]):
        epochs: list[int]

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

    batches = Batches(numbered(2))
    batches.epochs = []
    make_trainer(max_epochs=2).fit(Model(), batches)
    assert batches.epochs == [0, 1]


def test_the_sampler_of_a_validation_loader_is_told_the_epoch_of_training() -> None:
    class Validated(First):
        def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    sampler = Told(4)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(Validated(), DataLoader(DATA), DataLoader(DATA, sampler=sampler))
    assert sampler.epochs == [0, 1]
