"""A folder that takes nothing is an error before training begins; one that fails later stops no training."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from statemachine_trainer import Trainer
from statemachine_trainer.files import CannotWrite, check_writable
from statemachine_trainer.integrations.trackers import CSV, Tracker
from statemachine_trainer.snapshot.snapshot_errors import WriteFailed


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.steps = 0

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.steps += 1
        loss: torch.Tensor = self.layer(batch).pow(2).mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(net: Net, **settings: Any) -> Trainer:
    trainer = Trainer(max_epochs=1, progress=False, device="cpu", **settings)
    trainer.fit(net, [torch.ones(1, 2)] * 3)
    return trainer


def a_file(folder: Path) -> Path:
    (folder / "file").write_text("in the way")
    return folder / "file"


def below_a_file(folder: Path) -> Path:
    return a_file(folder) / "below"


def a_link_to_itself(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "link")
    return folder / "link"


def of_the_system(folder: Path) -> Path:
    return Path("/proc/nothing")


PLACES = [a_file, below_a_file, a_link_to_itself, of_the_system]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "given, error",
    [
        (lambda folder: {"checkpoints": folder}, WriteFailed),
        (lambda folder: {"run": folder}, CannotWrite),
        (lambda folder: {"callbacks": [CSV(folder / "metrics.csv")]}, CannotWrite),
    ],
)
def test_a_folder_that_takes_nothing_is_refused_before_the_first_batch(
    tmp_path: Path,
    place: Callable[[Path], Path],
    given: Callable[[Path], dict[str, Any]],
    error: type[Exception],
) -> None:
    folder, net = place(tmp_path), Net()
    with pytest.raises(error, match="Choose another folder"):
        fit(net, **given(folder))
    assert net.steps == 0


def test_a_folder_is_made_and_nothing_stays_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "one" / "two"
    check_writable(folder, "a test")
    assert not [*folder.iterdir()]


class Unreached(Tracker):
    """A tracker whose service cannot be reached now and then."""

    def __init__(self, fails: list[bool]) -> None:
        super().__init__(every=1)
        self.fails = fails
        self.written: list[int] = []

    def write(self, step: int, metrics: Any) -> None:
        if self.fails.pop(0):
            raise ConnectionError("nobody is there")
        self.written.append(step)


def test_a_tracker_that_cannot_write_is_told_once_and_stops_no_training(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tracker = Unreached([True, True, False, False])
    with caplog.at_level(logging.WARNING):
        trainer = fit(Net(), callbacks=[tracker])
    assert trainer.steps == 3
    assert tracker.written == [3]
    assert [one.getMessage() for one in caplog.records] == [
        "Unreached cannot write: nobody is there. The run goes on; what is measured meanwhile may be missing there."
    ]


def test_a_table_that_cannot_be_written_stops_no_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.csv").mkdir()
    with caplog.at_level(logging.WARNING):
        trainer = fit(Net(), callbacks=[CSV(tmp_path / "metrics.csv", every=1)])
    assert trainer.steps == 3
    assert "CSV cannot write" in caplog.text
