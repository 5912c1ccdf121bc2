"""A small training for `torchrun`, told on the command line what is to happen to it.

Without `torchrun` it is the same training in one process, on batches that join those of the ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from statemachine_trainer import Trainer
from statemachine_trainer.callbacks import Checkpoints, EarlyStopping
from statemachine_trainer.snapshot import Best, Retention

Pair = tuple[torch.Tensor, torch.Tensor]
RANK = int(os.environ.get("RANK", "0"))
SIZE = int(os.environ.get("WORLD_SIZE", "1"))
SAMPLES, BATCH = 48, 8


class Net(nn.Module):
    """A plain model; with `dropout` each rank draws, with `norm` each has buffers of its own."""

    def __init__(self, *, random_parts: bool) -> None:
        super().__init__()
        self.one = nn.Linear(4, 16)
        self.norm = nn.BatchNorm1d(16) if random_parts else nn.Identity()
        self.drop = nn.Dropout(0.2 if random_parts else 0.0)
        self.two = nn.Linear(16, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.two(self.drop(nn.functional.relu(self.norm(self.one(inputs)))))
        return out


class Task(Net):
    """The same model, with steps of its own."""

    log: Callable[..., None]

    def training_step(self, batch: Pair, batch_idx: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Pair, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        return {"optimizer": optimizer, "lr_scheduler": plateau, "monitor": "val_loss"}


class Points(Dataset[Pair]):
    """Remembers what was read; with `noise` it draws random numbers."""

    def __init__(self, *, noise: bool) -> None:
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(SAMPLES, 4, generator=generator)
        self.targets = torch.randint(3, (SAMPLES,), generator=generator)
        self.noise = noise
        self.hangs = False
        self.read: list[int] = []

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Pair:
        if self.hangs:
            threading.Event().wait()
        self.read.append(index)
        noise = 0.1 * torch.randn(4) + random.random() if self.noise else 0.0
        return self.inputs[index] + noise, self.targets[index]


class Joined:
    """The batches that the ranks read, joined: what one process has to train on to do the same."""

    def __init__(self, data: Points, ranks: int) -> None:
        self.samplers: list[DistributedSampler[Pair]] = [
            DistributedSampler(data, ranks, rank) for rank in range(ranks)
        ]

    def set_epoch(self, epoch: int) -> None:
        for sampler in self.samplers:
            sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        orders = [[*sampler] for sampler in self.samplers]
        for start in range(0, len(orders[0]), BATCH):
            yield [i for order in orders for i in order[start : start + BATCH]]

    def __len__(self) -> int:
        return -(-len(self.samplers[0]) // BATCH)


def loaders(data: Points, wanted: argparse.Namespace) -> tuple[Any, Any]:
    """The training data, and those of validation, of this rank."""
    if SIZE == 1:
        return DataLoader(data, batch_sampler=Joined(data, 2)), DataLoader(data, BATCH)
    train = DataLoader(data, BATCH, sampler=DistributedSampler(data), num_workers=wanted.workers)
    validation = DataLoader(data, BATCH, sampler=DistributedSampler(data, shuffle=False))
    return train, validation


def numbers(value: Any) -> Any:
    """All numbers of a tensor, also of one that is cut up among the ranks."""
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).tolist()


def digest(trainer: Trainer, data: Points) -> dict[str, Any]:
    """What a training came to, as data that JSON holds to the bit."""
    weights = {name: numbers(value) for name, value in trainer.model.state_dict().items()}
    optimizer = trainer.context.slots[0].optimizer.state_dict()
    moments = [
        {key: numbers(value) for key, value in one.items()} for one in optimizer["state"].values()
    ]
    return {
        "weights": weights,
        "optimizer": moments,
        "lr": optimizer["param_groups"][0]["lr"],
        "metrics": dict(trainer.metrics),
        "steps": trainer.steps,
        "epoch": trainer.epoch,
        "batches": trainer.context.counts.batch,
        "random": [random.random(), float(np.random.rand()), float(torch.rand(()))],
        "read": data.read,
    }


class Happening:
    """Does at the end of a batch what was asked for, at one rank."""

    def __init__(self, wanted: argparse.Namespace, data: Points) -> None:
        self.data = data
        self.what, _, place = wanted.what.partition("@")
        self.batch, self.rank = map(int, place.split("/")) if place else (0, 0)

    def on_batch_start(self, trainer: Trainer) -> None:
        """Let one weight of this rank be another one, as a faulty memory does."""
        here = (trainer.context.counts.batch, RANK) == (self.batch, self.rank)
        if self.what == "corrupt" and here:
            with torch.no_grad():
                next(trainer.model.parameters()).view(-1)[3] += 1e-6

    def on_batch_end(self, trainer: Trainer) -> None:
        if (
            self.what == "corrupt"
            or trainer.context.counts.batch != self.batch
            or self.rank != RANK
        ):
            return
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.what.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, self.what))
        elif self.what == "hang":
            self.data.hangs = True
        elif self.what == "checkpoint":
            trainer.checkpoint()
        else:
            trainer.post(self.what)


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--what", default="nothing", help="EVENT@batch/rank")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--every", default="1 epoch")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--task", action="store_true", help="a module with steps of its own")
    parser.add_argument("--random", action="store_true", help="dropout, batch norm, noisy data")
    parser.add_argument("--keep-buckets", action="store_true", help="do not lay them out anew")
    parser.add_argument("--shard", action="store_true", help="fully_shard")
    parser.add_argument("--bare", action="store_true", help="no DistributedDataParallel")
    parser.add_argument("--mirror", help="the address of another place for the checkpoints")
    parser.add_argument("--stopping", action="store_true", help="early stopping")
    parser.add_argument(
        "--timeout", type=float, default=300.0, help="seconds, of the process group"
    )
    parser.add_argument("--settings", default="{}", help="more for the trainer, as JSON")
    wanted = parser.parse_args()
    wanted.folder.mkdir(exist_ok=True)
    (wanted.folder / f"pid-{RANK}").write_text(str(os.getpid()))
    torch.set_num_threads(1)
    if SIZE > 1:
        dist.init_process_group("gloo", timeout=timedelta(seconds=wanted.timeout))
    torch.manual_seed(0)
    model: Any = (Task if wanted.task else Net)(random_parts=wanted.random)
    if SIZE > 1 and wanted.shard:
        for part in (model.one, model.two, model):
            fully_shard(part)
    elif SIZE > 1 and not wanted.bare:
        model = DistributedDataParallel(model, find_unused_parameters=wanted.keep_buckets)
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(RANK)
    data = Points(noise=wanted.random)
    train, validation = loaders(data, wanted)
    every = int(wanted.every) if wanted.every.isdecimal() else wanted.every
    checkpoints = Checkpoints(
        wanted.folder / "run",
        every=every,
        retention=Retention(last=2, best=Best("val_loss")),
        mirror=wanted.mirror,
    )
    happening = Happening(wanted, data)
    trainer = Trainer(
        max_epochs=wanted.epochs,
        accumulate=wanted.accumulate,
        callbacks=[happening, *([EarlyStopping("val_loss")] if wanted.stopping else [])],
        checkpoints=checkpoints,
        device="cpu",
        progress=False,
        **json.loads(wanted.settings),
    )
    more: dict[str, Any] = {}
    if not wanted.task:
        more["loss"] = nn.CrossEntropyLoss()
        more["optimizer"] = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer.fit(model, train, validation, resume="auto", **more)
    result = wanted.folder / f"digest-{RANK}.json"
    result.write_text(json.dumps(digest(trainer, data)))
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
