"""A fit to be debugged: dropout, shuffled data, a scheduler, validation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from statemachine_trainer.loops import log
from statemachine_trainer.testing.trees import comparable, digest
from statemachine_trainer.trainer import Trainer


class Net(nn.Module):
    """Draws random numbers in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.layers(batch[0]), batch[1])
        log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        log("val_loss", F.cross_entropy(self.layers(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def started(**settings: Any) -> Trainer:
    """A trainer whose fit was started: 2 epochs of 4 batches unless told."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(16, 4), torch.randint(3, (16,)))
    settings = {"max_epochs": 2, "sanity_batches": 0, **settings}
    trainer = Trainer(device="cpu", progress=False, **settings)
    trainer.start(Net(), DataLoader(data, 4, shuffle=True), DataLoader(data, 8))
    return trainer


def finish(trainer: Trainer) -> str:
    """Run to the end; return what the state of the run is there, to the bit."""
    while trainer.path is not None:
        trainer.run()
    return digest(comparable(trainer.state_dict()))
