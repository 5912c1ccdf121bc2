"""A small fit with checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from statemachine_trainer import Trainer, log
from statemachine_trainer.callbacks import Checkpoints
from statemachine_trainer.snapshot import Info

Pair = tuple[torch.Tensor, torch.Tensor]


class Net(nn.Module):
    """Logs what it is told to for each validation, and the number of the batch in training."""

    validations: torch.Tensor

    def __init__(self, width: int = 4, values: Sequence[float] = ()) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(width, 2)
        self.values = list(values)
        self.register_buffer("validations", torch.zeros((), dtype=torch.int64), persistent=False)

    def training_step(self, batch: Pair, batch_idx: int) -> torch.Tensor:
        log("loss", float(batch_idx))
        return F.cross_entropy(self.layer(batch[0]), batch[1])

    def validation_step(self, batch: Pair, batch_idx: int) -> None:
        if self.values:
            log("score", self.values[int(self.validations)])
            self.validations += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def batches(count: int = 8, width: int = 4) -> list[Pair]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(4, dtype=torch.int64)
    return [(torch.randn(4, width, generator=generator), labels) for _ in range(count)]


def trainer_with(checkpoints: Checkpoints | Path | None, **settings: Any) -> Trainer:
    return Trainer(
        checkpoints=checkpoints,
        **{"max_epochs": 1, "progress": False, "sanity_batches": 0, **settings},
    )


def fit(checkpoints: Checkpoints, **settings: Any) -> Trainer:
    trainer = trainer_with(checkpoints, **settings)
    trainer.fit(Net(), batches(), batches(1))
    return trainer


def found(checkpoints: Checkpoints) -> list[tuple[object, object]]:
    """Return step and state of the checkpoints that are there, the oldest first."""
    return [(one.metadata["step"], short(one)) for one in checkpoints.store.list()]


def steps(checkpoints: Checkpoints) -> list[object]:
    return [step for step, _ in found(checkpoints)]


def short(info: Info) -> str | None:
    state = info.metadata["state"]
    return None if state is None else str(state).rpartition(".")[2]


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
