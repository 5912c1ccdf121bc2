"""`smt replay --to spike`: before the batch with the first loss far above those before it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from statemachine_trainer.loops.spikes import LEAST, WINDOW, why_spike, with_loss
from tests.cli.replays import left_alone, replay, train

TRAIN = """
import sys

import torch
from torch import nn

from statemachine_trainer import Checkpoints, RunFolder, Trainer, every


def batches():
    draw = torch.Generator().manual_seed(1)
    made = [(torch.randn(6, 4, generator=draw), torch.randn(6, generator=draw)) for _ in range(30)]
    made[21][1].mul_(100.0)  # the targets of batch 22 are too large
    return made


def make(folder, log_every):
    torch.manual_seed(0)
    trainer = Trainer(
        max_epochs=1,
        seed=1,
        device="cpu",
        progress=False,
        run=RunFolder(folder, log_every=log_every),
        checkpoints=Checkpoints(folder, every=every(10, "batch")),
        fingerprints=every(1, "step"),
    )
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    arguments = {"loss": nn.functional.mse_loss, "optimizer": torch.optim.SGD}
    trainer.start(model, batches(), **arguments)
    return trainer


def recorded():
    return make("runs/recorded", 1)


def unrecorded():
    return make("runs/unrecorded", 0)


if __name__ == "__main__":
    recorded().run()
    unrecorded().run()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("spiking")
    (place / "train.py").write_text(TRAIN)
    train(place)
    return place


@pytest.fixture(autouse=True)
def _there(folder: Path) -> Iterator[None]:
    with left_alone(folder):
        yield


def test_a_recorded_spike_is_reached_from_the_checkpoint_before_it() -> None:
    said = replay("runs/recorded", "--to", "spike", "--from", "train.py:recorded", "--print")
    assert said.exit_code == 0, said.output
    assert "step-00000020 to a spike of 8 deviations: the loss is " in said.output
    assert "as they were recorded" in said.output
    assert "It reproduces itself" in said.output
    assert "before fit.epoch.batch.batch_start" in said.output
    assert "batch 22 (batch_idx 21), step 21" in said.output


def test_without_recorded_losses_each_batch_is_judged_from_the_beginning() -> None:
    said = replay("runs/unrecorded", "--to", "spike", "--from", "train.py:unrecorded", "--print")
    assert said.exit_code == 0, said.output
    assert "from its beginning to a spike of 8 deviations: the loss is " in said.output
    assert "batch 22 (batch_idx 21), step 21" in said.output


def test_the_limit_of_a_spike_can_be_told() -> None:
    target = ["--from", "train.py:unrecorded", "--print"]
    said = replay("runs/unrecorded", "--to", "spike 1000000", *target)
    assert said.exit_code == 2
    assert "did not come to a spike of 1e+06 deviations" in said.output


def test_a_spike_is_far_above_the_median_of_those_before() -> None:
    calm = [1.0 + 0.01 * (n % 5) for n in range(LEAST)]
    assert why_spike(1.5, calm, 8.0)
    assert why_spike(float("nan"), calm, 8.0)
    assert not why_spike(0.1, calm, 8.0)  # below is none
    assert not why_spike(1.5, calm[1:], 8.0)  # too few are known


def test_only_so_many_losses_are_kept() -> None:
    losses: list[float] = []
    for number in range(3 * WINDOW):
        losses = with_loss(losses, float(number))
    assert losses == [float(n) for n in range(2 * WINDOW, 3 * WINDOW)]
