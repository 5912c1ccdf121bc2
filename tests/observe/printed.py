"""A small training with fingerprints, and what can be changed about it in one place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from statemachine_trainer import Trainer, every
from statemachine_trainer.machine.driver import Until
from statemachine_trainer.observe.fingerprint_file import FingerprintFile, read_fingerprints

Pair = tuple[torch.Tensor, torch.Tensor]


class Net(nn.Module):
    """Draws in its forward pass (dropout), and has buffers that count batches."""

    def __init__(self, rate: float = 0.05) -> None:
        super().__init__()
        self.rate = rate
        self.layers = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.25), nn.Linear(8, 2)
        )

    def training_step(self, batch: Pair, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def validation_step(self, batch: Pair, batch_idx: int) -> None:
        self.layers(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.rate)


def loader(batches: int = 6, noise: float = 0.0) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(4 * batches, 5, generator=generator) + noise
    labels = torch.arange(4 * batches) % 2
    return DataLoader(TensorDataset(inputs, labels), batch_size=4, shuffle=True)


def train(
    folder: Path,
    make_model: Callable[[], nn.Module] = Net,
    data: Any = None,
    *,
    change: Callable[[Trainer], object] | None = None,
    resume: str | None = None,
    until: Until = None,
    fingerprints: object = every(1, "step"),
    **settings: Any,
) -> Trainer:
    """Train, or go on; `change` subscribes whatever makes a difference."""
    torch.manual_seed(0)
    settings = {"max_epochs": 2, "seed": 1, "checkpoints": folder, **settings}
    trainer = Trainer(device="cpu", progress=False, fingerprints=fingerprints, **settings)
    if change is not None:
        change(trainer)
    trainer.fit(make_model(), loader() if data is None else data, resume=resume, until=until)
    return trainer


def at_step(step: int, action: Callable[[Trainer], object]) -> Callable[[Trainer], object]:
    """Do something in the training step that makes so many steps complete."""

    def act(trainer: Trainer) -> None:
        if trainer.steps == step - 1:
            action(trainer)

    return lambda trainer: trainer.on("optimizer.forward", act)


def read(folder: Path) -> FingerprintFile:
    """The fingerprints of a run that has some."""
    found = read_fingerprints(folder)
    assert found is not None
    return found
