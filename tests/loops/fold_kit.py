"""A small model with dropout and batch norm, and small data, for loops that fit several times."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from statemachine_trainer.loops.metrics.log import log


class Net(nn.Sequential):
    def __init__(self, hidden: int = 6, features: int = 4, classes: int = 3) -> None:
        super().__init__(
            nn.Linear(features, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(hidden, classes),
        )

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        log("val_acc", accuracy(self, batch), batch_size=len(batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        log("acc", accuracy(self, batch), batch_size=len(batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


def accuracy(model: nn.Module, batch: Any) -> torch.Tensor:
    correct: torch.Tensor = (model(batch[0]).argmax(1) == batch[1]).float()
    return correct.mean()


def samples(size: int = 12, seed: int = 0) -> TensorDataset:
    inputs = torch.randn(size, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def loader(size: int = 12, *, shuffle: bool = True, seed: int = 0, batch_size: int = 4) -> Any:
    return DataLoader(samples(size, seed), batch_size=batch_size, shuffle=shuffle)


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    inputs, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    return torch.tensor(inputs, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]
