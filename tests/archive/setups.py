"""Small trainings whose checkpoints are kept, each stopped where something is open.

Only what every version has: this file runs with the version that writes an archive and with those that read it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from statemachine_trainer import FitLoop, KFoldLoop, Trainer, log
from statemachine_trainer.callbacks import Checkpoints, EarlyStopping


class Pair(NamedTuple):
    """A sample, or a batch of them."""

    x: torch.Tensor
    y: torch.Tensor


class Samples(Dataset[Pair]):
    """Twelve samples, noisy anew each time they are read."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Pair:
        x = torch.arange(4.0) / 4 - index / 12 + 0.01 * torch.rand(4)
        return Pair(x, torch.tensor(index % 2))


class Net(nn.Module):
    """A classifier with dropout."""

    def __init__(self, make_optimizer: Callable[[Any], Any]) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.25), nn.Linear(8, 2))
        self.make_optimizer = make_optimizer

    def training_step(self, batch: Pair, batch_idx: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self.layers(batch[0]), batch[1])
        log("loss", loss, batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch: Pair, batch_idx: int) -> None:
        loss = nn.functional.cross_entropy(self.layers(batch[0]), batch[1])
        log("val_loss", loss, batch_size=len(batch[0]))

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.parameters())


class Recurrent(nn.Module):
    """A network that is trained along time, piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(2, 3, batch_first=True)

    def training_step(self, batch: torch.Tensor, batch_idx: int, hiddens: Any) -> dict[str, Any]:
        out, hiddens = self.cell(batch, hiddens)
        return {"loss": out.pow(2).mean(), "hiddens": hiddens.detach()}

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.05)


def adam(parameters: Any) -> Any:
    """Plain Adam."""
    return torch.optim.Adam(parameters, lr=0.05)


def momentum(parameters: Any) -> Any:
    """SGD with momentum, its learning rate lowered after each batch."""
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.7)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(frozen=True)
class Fit:
    """A training, and the boundary at which its checkpoint is taken.

    Attributes:
        settings: Of the trainer, made anew for each; the loop under "loop".
        model: Makes the model.
        data: Makes the training and the validation data.
        at: End of the path of the state about to run.
        batch: Batches done.
    """

    settings: Callable[[], dict[str, Any]]
    at: str
    batch: int
    model: Callable[[], nn.Module] = lambda: Net(adam)
    data: Callable[[], tuple[Any, Any]] = lambda: (loader(), loader(shuffle=False))

    def trainer(self, folder: Path) -> Trainer:
        """Make the trainer; it writes no checkpoint that it is not asked for."""
        settings = self.settings()
        loops = [settings.pop("loop")] if "loop" in settings else []
        keeping = Checkpoints(folder, every="1000 epoch", at_end=False, on_signals=False)
        return Trainer(*loops, checkpoints=keeping, progress=False, device="cpu", **settings)

    def fit(self, trainer: Trainer, **arguments: Any) -> nn.Module:
        """Fit, and return the model."""
        torch.manual_seed(7)
        model = self.model()
        trainer.fit(model, *self.data(), **arguments)
        return model

    def stands(self, trainer: Trainer, moment: Any) -> bool:
        """Whether the fit is about to do the work before which its checkpoint is taken."""
        there = str(moment.target).endswith(f".{self.at}")
        return there and trainer.context.counts.batch == self.batch


def loader(*, shuffle: bool = True, workers: int = 0) -> DataLoader[Pair]:
    """Load the samples by threes."""
    return DataLoader(Samples(), batch_size=3, shuffle=shuffle, num_workers=workers)


FITS = {
    "plain": Fit(lambda: {"max_epochs": 2}, "batch_start", 5),
    "momentum_and_scheduler": Fit(
        lambda: {"max_epochs": 2, "clip_norm": 1.0, "callbacks": [EarlyStopping("val_loss")]},
        "epoch_end",
        4,
        model=lambda: Net(momentum),
    ),
    "open_window": Fit(lambda: {"max_epochs": 2, "accumulate": 3}, "batch_end", 5),
    "in_validation": Fit(lambda: {"max_epochs": 2, "sanity_batches": 1}, "validation_step", 4),
    "fold": Fit(
        lambda: {"loop": KFoldLoop(2, fit=FitLoop(max_epochs=2))},
        "batch_start",
        3,
        data=lambda: (loader(), None),
    ),
    "split_along_time": Fit(
        lambda: {"max_epochs": 2, "split_steps": 2},
        "optimizer_step",
        1,
        model=Recurrent,
        data=lambda: ([torch.linspace(-1, 1, 24).reshape(2, 6, 2) * n for n in (1, 2, 3)], None),
    ),
    "workers": Fit(
        lambda: {"max_epochs": 2, "seed": 3},
        "batch_start",
        5,
        data=lambda: (loader(workers=2), loader(shuffle=False)),
    ),
}
