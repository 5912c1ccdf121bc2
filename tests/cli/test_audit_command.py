"""`smt audit`: the list of what checkpoints hold, and a status for scripts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from statemachine_trainer.cli import app
from statemachine_trainer.cli.targets import trainer_of_target
from tests.cli.sandbox import clean_imports

TRAIN = """
import itertools
import random

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from statemachine_trainer import Trainer


class Numbers(Dataset):
    def __init__(self, counts):
        self.noise = random.Random(0)
        self.calls = itertools.count() if counts else None

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.tensor([self.noise.random()]), torch.zeros(1)


def make(counts=False):
    trainer = Trainer(max_epochs=1, progress=False)
    optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.1)
    data = DataLoader(Numbers(counts), batch_size=2)
    trainer.start(nn.Linear(1, 1), data, loss=nn.MSELoss(), optimizer=optimizer)
    return trainer


def make_counting():
    return make(counts=True)
"""


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "train.py"
    path.write_text(TRAIN)
    with clean_imports():
        yield path


def test_what_is_held_is_listed_and_the_status_is_0(script: Path) -> None:
    result = CliRunner().invoke(app, ["audit", f"{script}:make"])
    assert result.exit_code == 0, result.output
    first, last = result.output.strip().splitlines()
    assert first.split(maxsplit=2)[:2] == ["held", "train.dataset.noise"]
    assert last.startswith("1 held, 0 reseeded, 0 not held; ")


def test_what_is_not_held_makes_the_status_1(script: Path) -> None:
    result = CliRunner().invoke(app, ["audit", f"{script}:make_counting"])
    assert result.exit_code == 1
    assert "not held  train.dataset.calls  an iterator (count): " in result.output


FOLDER = """

def make_again():
    trainer = Trainer(max_epochs=1, progress=False, checkpoints=FOLDER)
    optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.1)
    data = DataLoader(Numbers(True), batch_size=2)
    trainer.start(nn.Linear(1, 1), data, loss=nn.MSELoss(), optimizer=optimizer)
    return trainer


def train():
    trainer = make_again()
    trainer.run()
    return trainer


def unstarted():
    return Trainer(max_epochs=1, progress=False)
"""


def test_an_earlier_run_in_the_folder_is_not_looked_at(script: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    script.write_text(f"FOLDER = {str(folder)!r}\n{TRAIN}{FOLDER}")
    with pytest.warns(UserWarning, match=r"train\.dataset\.calls"):
        trainer_of_target(f"{script}:train")
    files = {one: one.stat().st_mtime_ns for one in folder.rglob("*")}
    with clean_imports():
        result = CliRunner().invoke(app, ["audit", f"{script}:make_again"])
    assert result.exit_code == 1, result.output
    assert result.output.count("train.dataset.calls") == 1
    assert {one: one.stat().st_mtime_ns for one in folder.rglob("*")} == files


@pytest.mark.parametrize(
    "function, told",
    [("train", "runs no training and no evaluation"), ("unstarted", "that was not started")],
)
def test_a_function_that_trains_or_does_not_start_is_refused(
    function: str, told: str, script: Path, tmp_path: Path
) -> None:
    script.write_text(f"FOLDER = {str(tmp_path / 'run')!r}\n{TRAIN}{FOLDER}")
    result = CliRunner().invoke(app, ["audit", f"{script}:{function}"])
    assert result.exit_code != 0
    assert told in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()
