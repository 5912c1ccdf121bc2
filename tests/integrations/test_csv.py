"""The tracker CSV writes a table that a resumed run continues."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from statemachine_trainer import Trainer
from statemachine_trainer.files import NoPath
from statemachine_trainer.integrations.trackers import CSV
from statemachine_trainer.loops.loop_errors import SettingError
from tests.loops.inner_kit import make_batches, make_net

FIT: dict[str, Any] = {
    "loss": nn.functional.mse_loss,
    "optimizer": partial(torch.optim.SGD, lr=0.1),
}


def trainer_with(file: Path, **settings: Any) -> Trainer:
    callbacks = [CSV(file, every=settings.pop("every", 2))]
    return Trainer(
        **{"max_epochs": 2, "callbacks": callbacks, "progress": False, "device": "cpu", **settings}
    )


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as table:
        return [*csv.DictReader(table)]


def test_there_is_a_row_for_each_step_and_a_column_for_each_metric(tmp_path: Path) -> None:
    file = tmp_path / "made" / "metrics.csv"
    trainer = trainer_with(file)
    trainer.fit(make_net(), make_batches(3), make_batches(1), **FIT)
    rows = rows_of(file)
    assert [row["step"] for row in rows] == ["2", "3", "4", "6"]
    assert [*rows[0]] == ["step", "step/loss", "validation/val_loss", "train/loss"]
    assert float(rows[-1]["train/loss"]) == trainer.metrics["loss"]
    assert float(rows[-1]["validation/val_loss"]) == trainer.metrics["val_loss"]
    assert rows[0]["train/loss"] == ""


def test_a_test_is_in_the_row_of_the_last_step(tmp_path: Path) -> None:
    file, net = tmp_path / "metrics.csv", make_net()
    trainer = trainer_with(file)
    trainer.fit(net, make_batches(3), **FIT)
    before = rows_of(file)
    trainer.test(net, make_batches(1), loss=FIT["loss"])
    after = rows_of(file)
    assert after[-1]["step"] == "6"
    assert after[-1]["train/loss"] == before[-1]["train/loss"]
    assert after[-1]["test/test_loss"]


@pytest.mark.parametrize("stop", [1, 4, 5])
def test_a_resumed_run_ends_with_the_same_table(stop: int, tmp_path: Path) -> None:
    def trainer(name: str) -> Trainer:
        return trainer_with(tmp_path / f"{name}.csv", checkpoints=tmp_path / name)

    trainer("whole").fit(make_net(), make_batches(3), **FIT)
    first = trainer("parts")
    first.fit(make_net(), make_batches(3), **FIT, until=lambda trainer: trainer.steps == stop)
    first.checkpoint()
    first.run(until="epoch_end")  # measured again by the one that resumes
    trainer("parts").fit(make_net(), make_batches(3), **FIT, resume="auto")
    assert rows_of(tmp_path / "parts.csv") == rows_of(tmp_path / "whole.csv")


def test_an_error_leaves_what_was_measured(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path / "metrics.csv", every=1)

    @trainer.on("batch_end", when=lambda trainer: trainer.steps == 4)
    def fail() -> None:
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.fit(make_net(), make_batches(3), **FIT)
    assert [row["step"] for row in rows_of(tmp_path / "metrics.csv")] == ["1", "2", "3", "4"]


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("name,value\na,1\n")
    with pytest.raises(SettingError, match="no column of steps"):
        trainer_with(file).fit(make_net(), make_batches(3), **FIT)
    assert file.read_text() == "name,value\na,1\n"
    with pytest.raises(NoPath):
        CSV("")
