"""A run that was stopped anywhere and resumed is replayed to the bit, to any place."""

from __future__ import annotations

import random
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from statemachine_trainer import Checkpoints, Trainer, every
from statemachine_trainer.cli.places import Place
from statemachine_trainer.cli.replaying import Replay

STEPS = 16


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1)
        )

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def started(folder: Path | None, resume: Path | str | None) -> Trainer:
    torch.manual_seed(0)
    kept: dict[str, Any] = {}
    if folder is not None:
        checkpoints = Checkpoints(folder, every=every(3, "batch"))
        kept = {"checkpoints": checkpoints, "fingerprints": every(1, "step")}
    trainer = Trainer(max_epochs=2, seed=0, progress=False, **kept)
    draw = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(4, 3, generator=draw), torch.randn(4, 1, generator=draw)) for _ in range(8)
    ]
    trainer.start(Net(), batches, resume=resume)
    return trainer


@pytest.mark.parametrize("seed", range(3))
def test_it_reproduces_itself_wherever_it_was_stopped(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(3):  # left between two states, as a process that is killed leaves it
        left, so_far = draw.randint(5, 60), count()
        started(tmp_path, "auto").run(lambda _t, _m, n=left, c=so_far: next(c) >= n)
    started(tmp_path, "auto").run()
    for place in draw.sample(range(2, STEPS, 3), 2):  # a step or two after a checkpoint
        replay = Replay(tmp_path, Place.of(f"{place}"))
        replay.go(started(None, None if replay.checkpoint is None else replay.checkpoint.path))
        assert replay.verdict().startswith("It reproduces itself"), place
