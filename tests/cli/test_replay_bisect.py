"""`smt replay --bisect`: which version of the code parts first, and where."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from statemachine_trainer.cli.bisecting import _middle
from tests.cli.replays import left_alone, replay, train

TRAIN = """
import torch

from model import Net
from statemachine_trainer import Trainer, every

if __name__ == "__main__":
    draw = torch.Generator().manual_seed(1)
    batches = [torch.randn(6, 3, generator=draw) for _ in range(6)]
    torch.manual_seed(0)
    trainer = Trainer(
        max_epochs=1, seed=1, progress=False, run="runs/a", device="cpu", fingerprints=every(2, "step")
    )
    trainer.fit(Net(), batches)
"""
MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean() * self.factor(batch_idx)

    def factor(self, batch_idx):
        return 1.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
"""
CHANGED = MODEL.replace("return 1.0", "return 1.0 if batch_idx < 3 else 1.01")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a run, and three commits: the second one changes the loss from batch 4 on."""
    place = tmp_path_factory.mktemp("project")
    (place / "train.py").write_text(TRAIN)
    (place / "model.py").write_text(MODEL)
    git(place, "init", "-q")
    commit(place, "Begin")
    train(place)
    (place / "model.py").write_text(CHANGED)
    commit(place, "Weigh late batches")
    (place / "model.py").write_text(f"{CHANGED}\n# a remark\n")
    commit(place, "Remark on it")
    (place / "other.py").write_text(TRAIN.replace("(0)", "(1)"))
    return place


def git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.org")
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


def commit(folder: Path, message: str) -> None:
    git(folder, "add", "train.py", "model.py")
    git(folder, "commit", "-q", "-m", message)


@pytest.fixture(autouse=True)
def _there(folder: Path) -> Iterator[None]:
    with left_alone(folder):
        yield
    index = subprocess.run(["git", "status", "--short", "-uno"], cwd=folder, capture_output=True)
    assert not index.stdout


@pytest.mark.slow
def test_of_commits_the_first_that_parts_is_named_and_where() -> None:
    said = replay("runs/a", "--to", "5", "--bisect", "HEAD~2", "HEAD")
    assert said.exit_code == 1, said.output
    assert "Begin: It reproduces itself" in said.output
    assert "Remark on it: It does not reproduce itself." in said.output
    assert "Weigh late batches, at step 4 (batch 4, epoch 1), forward: loss" in said.output
    assert "All was equal at the start of step 4 (batch 4, epoch 1)." in said.output


@pytest.mark.slow
def test_of_two_files_both_are_told() -> None:
    said = replay("runs/a", "--to", "2", "--bisect", "train.py", "other.py")
    assert said.exit_code == 1, said.output
    assert "other.py: It does not reproduce itself." in said.output
    assert "They part first with other.py, at step 1 (batch 1, epoch 1)" in said.output
    assert "weight layer.weight, layer.bias" in said.output


def test_a_commit_that_is_not_there_is_told() -> None:
    said = replay("runs/a", "--to", "5", "--bisect", "HEAD", "--upload-pack=touch x")
    assert said.exit_code == 2
    assert "git rev-parse fails" in said.output


def test_the_same_commit_twice_is_refused() -> None:
    said = replay("runs/a", "--to", "5", "--bisect", "HEAD", "HEAD~0")
    assert said.exit_code == 2
    assert "are the same commit" in said.output


def test_commits_whose_code_fails_are_passed_over() -> None:
    assert _middle(0, 4, set()) == 2
    assert _middle(0, 4, {2}) in (1, 3)
    assert _middle(0, 4, {1, 2, 3}) is None
    assert _middle(3, 4, set()) is None
