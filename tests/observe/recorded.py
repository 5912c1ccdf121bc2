"""A small training with a run folder, as a process: told on the command line what is to happen to it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from torch import nn

from statemachine_trainer import Trainer, log

Pair = tuple[torch.Tensor, torch.Tensor]


class Net(nn.Module):
    """Logs a loss in training and a score in validation; both follow from the weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 2)
        self.hangs = False

    def training_step(self, batch: Pair, batch_idx: int) -> torch.Tensor:
        if self.hangs:
            threading.Event().wait()
        loss = nn.functional.cross_entropy(self.layer(batch[0]), batch[1])
        log("loss", loss, on_step=True)
        return loss

    def validation_step(self, batch: Pair, batch_idx: int) -> None:
        log("score", nn.functional.cross_entropy(self.layer(batch[0]), batch[1]))

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def batches(count: int = 8) -> list[Pair]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(4, dtype=torch.int64)
    return [(torch.randn(4, 4, generator=generator), labels) for _ in range(count)]


def trainer(**settings: Any) -> Trainer:
    plain = {"max_epochs": 3, "device": "cpu", "progress": False, "sanity_batches": 0}
    return Trainer(**{**plain, **settings})


def hang_here() -> None:
    """Wait for ever."""
    threading.Event().wait()


def main(folder: str, what: str, step: int, epochs: int) -> None:
    """Train; at `batch_end` of a step: "kill", "hang", "hang in a receiver", "part" (validate), or "go" on."""
    from statemachine_trainer.callbacks import Checkpoints

    checkpoints = None if "RANK" in os.environ else Checkpoints(folder, every=5)
    model = Net()
    mine = trainer(run=folder, checkpoints=checkpoints, max_epochs=epochs)

    @mine.on("batch_end")
    def happen() -> None:
        if mine.steps != step:
            return
        Path(folder, f"reached-{os.environ.get('RANK', '0')}").touch()
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "hang":
            model.hangs = True
        if what == "hang in a receiver":
            hang_here()
        if what == "part":
            mine.post("validate")

    mine.fit(model, batches(), batches(2), resume=None if checkpoints is None else "auto")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
