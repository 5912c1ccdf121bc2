"""Runs that go on with another number of ranks, all of them in one launch of four processes.

Each number of ranks is a process group of its own, of the first processes; the others wait. What was read and what it
came to is written as JSON, rank by rank.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import FileStore, PrefixStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler

from statemachine_trainer import Trainer
from statemachine_trainer.callbacks import EMA, Checkpoints
from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.snapshot import Retention

FOLDER = Path(sys.argv[1])
RANK = int(os.environ["RANK"])
MOST = int(os.environ["WORLD_SIZE"])
ALL = 2**20
"""Batches after which nothing is stopped."""


class Points(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Remembers what was read."""

    def __init__(self, samples: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(samples, 4, generator=generator)
        self.targets = torch.randint(3, (samples,), generator=generator)
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.read.append(index)
        return self.inputs[index], self.targets[index]


class Net(nn.Module):
    log: Callable[..., None]

    def __init__(self, drop: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Linear(4, 10)
        self.norm = nn.LayerNorm(4)
        self.drop = nn.Dropout(drop)
        self.two = nn.Linear(10, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.two(self.drop(torch.relu(self.one(self.norm(inputs)))))
        return out

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.log("seen", float(len(batch[1])), reduce="sum")
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class Stopped(Exception):
    """The end of a run, at all ranks at one moment."""


@contextmanager
def group(size: int) -> Iterator[bool]:
    """Within the block the first processes are ranks of a run, which is told; afterwards all are here again."""
    everybody.barrier()
    if size > RANK:
        os.environ["WORLD_SIZE"] = str(size)
        if size > 1:
            store = PrefixStore(f"{everybody.times}", everybody.store)
            dist.init_process_group("gloo", store=store, rank=RANK, world_size=size)
    try:
        yield size > RANK
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    everybody.barrier()


class Everybody:
    """Lets all processes of the launch wait for each other, whatever groups they are in."""

    def __init__(self) -> None:
        # A file: the store of torchrun has been seen to close connections on a busy machine.
        self.store = FileStore(str(FOLDER / "everybody"), MOST)
        self.times = 0

    def barrier(self) -> None:
        self.times += 1
        self.store.set(f"here-{self.times}-{RANK}", "")
        self.store.wait([f"here-{self.times}-{rank}" for rank in range(MOST)])


everybody = Everybody()


def wrapped(model: Net, kind: str) -> nn.Module:
    if not dist.is_initialized():
        return model
    if kind == "tensor":
        mesh = mesh_of_data_and_tensors()
        plan = {"one": ColwiseParallel(), "two": RowwiseParallel()}
        parallelize_module(model, mesh["tensor"], plan)
        if mesh["data"].size() > 1:
            fully_shard(model, mesh=mesh["data"])
        return model
    if kind == "ddp":
        return DistributedDataParallel(model)
    for part in (model.one, model.two, model):
        fully_shard(part)
    return model


def mesh_of_data_and_tensors() -> Any:
    """Pairs of ranks hold a model together."""
    shape = (dist.get_world_size() // 2, 2)
    return init_device_mesh("cpu", shape, mesh_dim_names=("data", "tensor"))


def whole(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {str(name): whole(one) for name, one in tree.items()}
    if isinstance(tree, list):
        return [whole(one) for one in tree]
    if isinstance(tree, torch.Tensor):
        return (tree.full_tensor() if hasattr(tree, "full_tensor") else tree).tolist()
    return tree


def tensors_of(trainer: Trainer, average: EMA) -> Any:
    optimizer = trainer.context.slots[0].optimizer.state_dict()["state"]
    return [whole(dict(trainer.model.state_dict())), whole(optimizer), whole(average.average)]


@dataclass(frozen=True)
class Part:
    """A part of a run: some ranks, each with batches of some samples, stopped after some batches of the run."""

    size: int
    batch: int
    stop: int = ALL
    shuffled: bool = True


def train(folder: Path, part: Part, kind: str = "ddp", **more: Any) -> Any:
    """Train as one rank, from where the folder stands."""
    data, average = Points(more.get("samples", 50)), EMA(0.9)
    model = Net(more.get("drop", 0.2))
    network = wrapped(model, kind)
    readers, reader = part.size, RANK
    if kind == "tensor" and part.size > 1 and not more.get("each_its_own"):
        readers, reader = part.size // 2, RANK // 2
    torch.manual_seed(RANK if more.get("other_numbers") else reader)
    shared: DistributedSampler[Any] = DistributedSampler(data, readers, reader)
    trainer = Trainer(
        max_epochs=more.get("epochs", 1),
        device="cpu",
        progress=False,
        checkpoints=Checkpoints(folder, every=1, retention=Retention(last=9)),
        callbacks=[average],
        accumulate=more.get("accumulate", 1),
        clip_norm=more.get("clip_norm"),
        prefetch=more.get("prefetch", False),
    )
    first: list[Any] = []

    def begin() -> None:
        if not first:
            first.extend([tensors_of(trainer, average), float(torch.rand(()))])

    def split() -> None:
        if trainer.context.counts.batch == part.stop:
            raise Stopped

    trainer.on("batch_start", begin)
    trainer.on("batch_split", split)
    loader = DataLoader(
        data,
        part.batch,
        sampler=shared if part.shuffled else RandomSampler(data),
        num_workers=more.get("workers", 0),
    )
    error = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trainer.fit(network, loader, resume="auto")
        except Stopped:
            pass
        except StateMachineError as problem:
            error = f"{type(problem).__name__}: {problem}"
    return {
        "first": first,
        "last": tensors_of(trainer, average) if error is None else None,
        "read": data.read,
        "batches": None if error else trainer.context.counts.batch,
        "metrics": {} if error else dict(trainer.context.results),
        "told": [f"{one.category.__name__}: {one.message}" for one in caught],
        "error": error,
    }


def scene(name: str, *parts: Part, **more: Any) -> list[Any]:
    """What each part of a run came to at this rank; None if it is none of its ranks."""
    found = []
    for part in parts:
        with group(part.size) as mine:
            found.append(train(FOLDER / name, part, **more) if mine else None)
    return found


WALK = [1, 2, 1, 3, 1, 4, 2, 3, 2, 4, 3, 4, 1]
"""Numbers of ranks, one after the other: each follows on each other once."""


def walk() -> list[Any]:
    """A batch with each; the model is in `DistributedDataParallel` and cut up in turns."""
    found = []
    for index, size in enumerate(WALK):
        part = Part(size, 12 // size, index + 1 if index + 1 < len(WALK) else ALL)
        kind = ("fsdp", "ddp")[index // 2 % 2]
        found += scene("walk", part, kind=kind, samples=12 * len(WALK), drop=0.0)
    return found


def of_ranks() -> dict[str, Any]:
    """Numbers of ranks that change."""
    return {
        "walk": walk(),
        "whole": scene("whole", Part(1, 12), samples=12 * len(WALK), drop=0.0),
        "batches of a rank stay": scene("stay", Part(2, 6, 2), Part(4, 6)),
        "read ahead": scene("ahead", Part(2, 6, 2), Part(3, 4), prefetch=True, workers=1),
        "open window": scene("window", Part(2, 6, 3), Part(1, 12), accumulate=2),
        "own order, within an epoch": scene("within", Part(1, 12, 2, shuffled=False), Part(2, 6)),
        "own order, between two epochs": scene(
            "between", Part(1, 25, 2, shuffled=False), Part(2, 12), epochs=2
        ),
        "an order that is not shared": scene("another", Part(2, 6, 2), Part(1, 12, shuffled=False)),
    }


def of_tensors() -> dict[str, Any]:
    """Pairs of ranks that hold a model together."""
    tensors: dict[str, Any] = {
        "kind": "tensor",
        "samples": 72,
        "drop": 0.0,
        "clip_norm": 0.05,
    }
    return {
        "tensors, undisturbed": scene("tensors", Part(4, 6), **tensors),
        "tensors, whole": scene("tensors-whole", Part(1, 12), **tensors),
        "tensors, stopped": scene("tensors-stopped", Part(4, 6, 2), Part(4, 6), **tensors),
        "tensors, changed": scene(
            "tensors-changed",
            *(Part(4, 6, 1), Part(2, 12, 2), Part(1, 12, 3), Part(4, 6)),
            **tensors,
        ),
        "tensors, each its own data": scene(
            "tensors-own", Part(4, 3), each_its_own=True, **tensors
        ),
        "tensors, other numbers": scene(
            "tensors-numbers", Part(4, 6), other_numbers=True, **tensors
        ),
    }


def main() -> None:
    """Write what came of one of the two sets of scenes."""
    (FOLDER / f"pid-{RANK}").write_text(str(os.getpid()))
    torch.set_num_threads(1)
    found = of_tensors() if sys.argv[2] == "tensors" else of_ranks()
    (FOLDER / f"found-{RANK}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
