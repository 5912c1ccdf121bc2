"""Parts of a checkpoint are written in the background: of the boundary, whole or not at all, and failures are told."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from statemachine_trainer import Trainer, load_weights
from statemachine_trainer.callbacks import Checkpoints
from statemachine_trainer.snapshot import Retention, Store, checkpoint_folder
from tests.ranks.forked import in_ranks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.name != "posix", reason="processes of Unix"),
]

BATCHES = 6


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 17), nn.Dropout(0.2), nn.Linear(17, 3))


def make_trainer(folder: Path, **settings: Any) -> Trainer:
    keeping = Checkpoints(
        folder, **{"every": 2, "background": True, "retention": Retention(last=9), **settings}
    )
    return Trainer(max_epochs=1, device="cpu", progress=False, checkpoints=keeping)


def fit(trainer: Trainer, rank: int) -> Any:
    """Train as one of two ranks, from where the folder stands; return the weights."""
    model = make_model()
    for part in (model[0], model[2], model):
        fully_shard(part)
    inputs = torch.randn(6 * BATCHES, 8)
    data = TensorDataset(inputs, inputs[:, :3].argmax(1))
    torch.manual_seed(rank)
    trainer.fit(
        model,
        DataLoader(data, 3, sampler=DistributedSampler(data)),
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
        resume="auto",
    )
    return whole(model)


def whole(model: nn.Module) -> dict[str, Any]:
    weights: dict[str, Any] = model.state_dict()
    return {
        name: (one.full_tensor() if hasattr(one, "full_tensor") else one).tolist()
        for name, one in weights.items()
    }


def test_a_checkpoint_holds_its_boundary_though_training_goes_on_before_it_is_written(
    tmp_path: Path,
) -> None:
    """The files of the first are held back until two more batches are trained."""

    def train(rank: int) -> Any:
        trainer, go_on, seen = make_trainer(tmp_path / "run", every=3), Event(), dict[int, Any]()
        write = checkpoint_folder.write_tensors

        def held(*arguments: Any) -> Any:
            assert go_on.wait(100)
            return write(*arguments)

        checkpoint_folder.write_tensors = held  # type: ignore[assignment]

        def note() -> None:
            batch = trainer.context.counts.batch
            seen[batch] = whole(trainer.model)
            if batch == 5:
                assert not [*(tmp_path / "run").glob("0*")]
                go_on.set()

        trainer.on("batch_end", note)
        last = fit(trainer, rank)
        return {"last": last, "seen": seen}

    for rank in in_ranks(2, tmp_path, train):
        saved = Store(tmp_path / "run").list()
        assert [one.metadata["batch"] for one in saved] == [3, 6]
        assert all(one.damage is None for one in saved)
        for info in saved:
            model = make_model()
            load_weights(model, info.path)
            assert whole(model) == rank["seen"][str(info.metadata["batch"])]
        assert rank["last"] == rank["seen"]["6"]


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop() -> None:
        raise Stopped

    def stopped(rank: int) -> Any:
        trainer = make_trainer(tmp_path / "run")
        trainer.on("batch_end", stop, when=lambda trainer: trainer.steps == 5)
        return fit(trainer, rank)

    assert in_ranks(2, tmp_path, stopped) == ["Stopped: "] * 2
    assert [one.metadata["batch"] for one in Store(tmp_path / "run").list()] == [2, 4]
    resumed = in_ranks(2, tmp_path, lambda rank: fit(make_trainer(tmp_path / "run"), rank))
    plain = make_folder = tmp_path / "plain"
    undisturbed = in_ranks(
        2, plain, lambda rank: fit(make_trainer(make_folder / "run", background=False), rank)
    )
    assert resumed == undisturbed


@pytest.mark.parametrize("when", ["in the middle", "at the end"])
@pytest.mark.parametrize("failing", [0, 1])
def test_a_disk_that_fails_at_one_rank_is_told_at_all_and_leaves_nothing(
    failing: int, when: str, tmp_path: Path
) -> None:
    every = 2 if when == "in the middle" else 6

    def no_room(files: Any, path: Path, tensors: Any) -> Any:
        path.write_bytes(b"a part of it")
        raise OSError(28, "No space left on device")

    def train(rank: int) -> Any:
        if rank == failing:
            checkpoint_folder.write_tensors = no_room
        return fit(make_trainer(tmp_path / "run", every=every, at_end=False), rank)

    for rank in in_ranks(2, tmp_path, train):
        assert rank.startswith("WriteFailed: ")
        assert "No space left on device" in rank
        assert "The checkpoints before it are untouched" in rank
    names = [one.name for one in (tmp_path / "run").iterdir()]
    assert not [one for one in names if one.startswith((".tmp@", "0"))]
