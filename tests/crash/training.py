"""A training as people run it, to be stopped by the system: one command for each of its starts.

    python training.py FOLDER DIGEST [options]

A model with dropout and batch norm, Adam and a scheduler; shuffled data that draws random numbers;
validation in the middle of an epoch; windows of accumulation over two batches. At its end it writes
to the file DIGEST what has to be the same after every history of interruptions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from statemachine_trainer import Trainer, log
from statemachine_trainer.callbacks import Checkpoints
from statemachine_trainer.snapshot import Best, Retention

Pair = tuple[torch.Tensor, torch.Tensor]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4)
        )

    def training_step(self, batch: Pair, batch_idx: int) -> torch.Tensor:
        loss = F.cross_entropy(self.layers(batch[0]), batch[1])
        log("loss", loss)
        return loss

    def validation_step(self, batch: Pair, batch_idx: int) -> None:
        log("val_loss", F.cross_entropy(self.layers(batch[0]), batch[1]))

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 7, gamma=0.9)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class Noisy(Dataset[Pair]):
    """Items that are never twice the same."""

    def __init__(self, length: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(length, 8, generator=generator)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Pair:
        noise = 0.1 * torch.randn(8) + 0.01 * random.random() + 0.01 * float(np.random.rand())
        inputs = self.inputs[index]
        return inputs + noise, inputs[:4].argmax()


class Trace:
    """Every signal that was fired, as one number, and the metrics of every pass."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.fired = 0
        self.signals = ""
        self.metrics: list[Any] = []

    def on_fit(self) -> None:
        self.begin()

    def note(self, moment: Any) -> None:
        text = f"{self.signals}{moment.signal}{moment.event}{moment.source}"
        self.fired, self.signals = self.fired + 1, hashlib.sha256(text.encode()).hexdigest()

    def on_validation_end(self, trainer: Any) -> None:
        self.keep(trainer)

    def on_epoch_end(self, trainer: Any) -> None:
        self.keep(trainer)

    def keep(self, trainer: Any) -> None:
        self.metrics = [*self.metrics, dict(trainer.metrics)][-50:]

    def state_dict(self) -> dict[str, Any]:
        return {"fired": self.fired, "signals": self.signals, "metrics": self.metrics}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.fired, self.signals = state["fired"], state["signals"]
        self.metrics = state["metrics"]


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("digest", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--background", action="store_true")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--everywhere", action="store_true", help="a checkpoint at every boundary")
    parser.add_argument("--bare", action="store_true", help="no checkpoints at all")
    parser.add_argument("--resume", default="auto", help="'' to say nothing of resuming")
    parser.add_argument("--signal", help="SIGNAL@BATCH: send it to this very process, once")
    parser.add_argument("--group", action="store_true", help="... to its whole process group")
    parser.add_argument("--slow", type=float, default=0.0, help="seconds a batch takes at least")
    return parser.parse_args(arguments)


def make(
    told: argparse.Namespace,
) -> tuple[Trainer, Net, DataLoader[Pair], DataLoader[Pair], Trace]:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    checkpoints = Checkpoints(
        told.folder,
        every=1,
        background=told.background,
        retention=Retention(last=2, best=Best("val_loss")),
    )
    trace = Trace()
    trainer = Trainer(
        max_epochs=told.epochs,
        accumulate=2,
        validate_every=5,
        callbacks=[trace],
        checkpoints=None if told.bare else checkpoints,
        progress=False,
    )
    trainer.on("*:*", trace.note)
    workers: dict[str, Any] = {"num_workers": told.workers}
    train = DataLoader(Noisy(96), batch_size=8, shuffle=True, **workers)
    return trainer, Net(), train, DataLoader(Noisy(24), batch_size=8, **workers), trace


def train(told: argparse.Namespace, begun: Any = None) -> None:
    """Train to the end.

    Args:
        told: The options.
        begun: Called whenever a state is left.
    """
    trainer, model, data, validation, trace = make(told)
    if begun is not None:
        trainer.on("*:exit", begun)
    if told.everywhere and not told.bare:
        trainer.on("*", trainer.checkpoint)
    if told.signal:
        send_once(trainer, told.signal, told.folder.with_suffix(".signal"), group=told.group)
    if told.slow:
        trainer.on("batch_start", lambda: spin(told.slow))
    trainer.fit(model, data, validation, resume=None if told.bare else told.resume or None)
    told.digest.write_text(json.dumps(digest(trainer, model, trace), indent=2))


def warm_up() -> None:
    """Let torch import what an optimizer's first step asks for, without training anything."""
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    torch.optim.Adam([parameter]).step()


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def send_once(trainer: Trainer, what: str, marker: Path, *, group: bool) -> None:
    name, _, batch = what.partition("@")

    def send(trainer: Trainer) -> None:
        if trainer.context.counts.batch == int(batch) and not marker.exists():
            marker.touch()
            os.kill(0 if group else os.getpid(), getattr(signal, name))

    trainer.on("backward", send)


def digest(trainer: Trainer, model: nn.Module, trace: Trace) -> dict[str, Any]:
    (slot,) = trainer.context.slots
    optimizer = slot.optimizer.state_dict()
    adam = {f"{n}.{k}": v for n, state in optimizer["state"].items() for k, v in state.items()}
    return {
        "weights": sha(model.state_dict()),
        "optimizer": sha(adam),
        "learning_rates": [group["lr"] for group in optimizer["param_groups"]],
        "counts": {k: v for k, v in vars_of(trainer.context.counts).items() if "seconds" not in k},
        "metrics": trainer.metrics,
        "trace": trace.state_dict(),
        "rng": [
            hashlib.sha256(repr(random.getstate()).encode()).hexdigest(),
            float(torch.rand(())),
        ],
    }


def vars_of(counts: Any) -> dict[str, Any]:
    found: dict[str, Any] = counts.state_dict()
    return found


def sha(tensors: Mapping[str, torch.Tensor]) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return total.hexdigest()


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    train(options(sys.argv[1:]))
