"""Models on meshes of two axes: they go on with another number of ranks, and are evaluated, as in one process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from statemachine_trainer import Trainer
from statemachine_trainer.callbacks import Checkpoints
from tests.ranks.forked import in_ranks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.name != "posix", reason="processes of Unix"),
]

Kind = Literal["parts", "repeated", "tensors"]
INPUTS = torch.randn(48, 8, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(INPUTS, INPUTS[:, :3].argmax(1))
BATCH = 8
"""Of all ranks together."""


class Stopped(Exception):
    """The end of a run, at all ranks at one moment."""


class Net(nn.Module):
    log: Callable[..., None]

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Linear(8, 18)
        self.two = nn.Linear(18, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.two(torch.relu(self.one(inputs)))
        return out

    def training_step(self, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def predict_step(self, batch: Any) -> torch.Tensor:
        out: torch.Tensor = self(batch[0])
        return out

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def cut_up(model: Net, kind: Kind) -> tuple[int, int]:
    """Cut a model up; return how many ranks read data of their own, and which of them this is."""
    if not dist.is_initialized():
        return 1, 0
    size, rank = dist.get_world_size(), dist.get_rank()
    if kind == "tensors":
        mesh = init_device_mesh("cpu", (size // 2, 2), mesh_dim_names=("data", "tensor"))
        parallelize_module(
            model, mesh["tensor"], {"one": ColwiseParallel(), "two": RowwiseParallel()}
        )
        return size // 2, rank // 2
    if kind == "repeated":
        mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("replicate", "shard"))
    else:
        mesh = init_device_mesh("cpu", (size,))
    for part in (model.one, model.two, model):
        fully_shard(part, mesh=mesh)
    return size, rank


def loader(readers: int, reader: int, *, shuffle: bool = True) -> DataLoader[Any]:
    sampler: DistributedSampler[Any] = DistributedSampler(DATA, readers, reader, shuffle=shuffle)
    return DataLoader(DATA, BATCH // readers, sampler=sampler)


def whole(model: nn.Module) -> list[Any]:
    return [
        (one.full_tensor() if hasattr(one, "full_tensor") else one).tolist()
        for one in model.parameters()
    ]


def train(folder: Path, kind: Kind, *, stop: int | None = None) -> Any:
    """Train an epoch as one of the ranks, from where the folder stands."""
    model = Net()
    readers, reader = cut_up(model, kind)
    trainer = Trainer(
        max_epochs=1, device="cpu", progress=False, checkpoints=Checkpoints(folder, every=1)
    )

    def end() -> None:
        raise Stopped

    trainer.on("batch_split", end, when=lambda trainer: trainer.steps == stop)
    trainer.fit(model, loader(readers, reader), resume="auto")
    return whole(model)


def assert_close(ours: list[Any], theirs: list[Any]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("parts", [("repeated", 4, "parts", 2), ("parts", 2, "repeated", 4)])
def test_parts_that_are_repeated_go_on_with_another_number_of_ranks_within_an_epoch(
    parts: tuple[Kind, int, Kind, int], tmp_path: Path
) -> None:
    (alone,) = in_ranks(1, tmp_path, lambda _: train(tmp_path / "alone", "parts"))
    before, size, after, other = parts
    run = tmp_path / "run"
    stopped = in_ranks(size, tmp_path, lambda _: train(run, before, stop=3))
    assert stopped == ["Stopped: "] * size
    for rank in in_ranks(other, tmp_path, lambda _: train(run, after)):
        assert_close(rank, alone)


def test_a_model_in_tensor_parallelism_is_evaluated_and_predicts_as_a_whole_one(
    tmp_path: Path,
) -> None:
    def evaluated(_: int) -> Any:
        model = Net()
        cut_up(model, "tensors")
        trainer, data = (
            Trainer(device="cpu", progress=False, run=False),
            loader(1, 0, shuffle=False),
        )
        outputs = trainer.predict(model, data)
        return [trainer.validate(model, data), torch.cat(outputs).tolist()]

    ((metrics, outputs),) = in_ranks(1, tmp_path, evaluated)
    for found, predicted in in_ranks(2, tmp_path, evaluated):
        assert found == pytest.approx(metrics, abs=1e-6)
        assert_close(predicted, outputs)
