"""A script that goes on and makes its own generators with another seed draws what the run would have drawn."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from statemachine_trainer import Trainer
from statemachine_trainer.audit.settings_record import SettingsChanged
from statemachine_trainer.callbacks import Checkpoints

KINDS: dict[str, tuple[Callable[[int], Any], Callable[[Any], float]]] = {
    "random.Random": (random.Random, lambda rng: rng.random()),
    "numpy.RandomState": (np.random.RandomState, lambda rng: float(rng.rand())),
    "numpy.Generator": (np.random.default_rng, lambda rng: float(rng.random())),
    "torch.Generator": (
        lambda seed: torch.Generator().manual_seed(seed),
        lambda rng: float(torch.rand(1, generator=rng)),
    ),
}
PLACES = ("data", "collate", "model", "receiver")


class Rows(Dataset[torch.Tensor]):
    def __init__(self, draw: Callable[[], float]) -> None:
        self.draw = draw

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((2,), float(index)) + self.draw()


class Net(nn.Linear):
    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__(2, 1)
        self.draw = draw

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = (self(batch) * (1 + self.draw())).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def train(folder: Path, kind: str, place: str, seed: int, until: int | None) -> list[torch.Tensor]:
    """Train, up to a batch or to the end; a generator of its own draws in one place."""
    make, draw = KINDS[kind]
    rng = make(seed)

    def here(name: str) -> Callable[[], float]:
        return (lambda: draw(rng)) if name == place else (lambda: 0.0)

    in_batch, in_receiver = here("collate"), here("receiver")

    def collate(rows: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(rows) + in_batch()

    torch.manual_seed(0)
    model = Net(here("model"))
    trainer = Trainer(
        max_epochs=2, device="cpu", progress=False, checkpoints=Checkpoints(folder, every=1)
    )

    def shake() -> None:
        with torch.no_grad():
            model.weight.add_(in_receiver())

    trainer.on("batch_end", shake)
    loader = DataLoader(Rows(here("data")), batch_size=2, collate_fn=collate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SettingsChanged)  # of some kinds the seed is told
        trainer.start(model, loader, resume="auto" if folder.exists() else None)
    trainer.run(until=None if until is None else lambda: trainer.context.counts.batch == until)
    return [one.detach().clone() for one in model.parameters()]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_generators_of_the_checkpoint_hold(kind: str, place: str, tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", kind, place, seed=1, until=None)
    train(tmp_path / "stopped", kind, place, seed=1, until=4)
    resumed = train(tmp_path / "stopped", kind, place, seed=2, until=None)
    assert all(map(torch.equal, whole, resumed))
