"""Predictions are written into a folder batch by batch, and read from there in their order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from statemachine_trainer import PredictionLoop, Trainer
from statemachine_trainer.files import NoPath
from statemachine_trainer.loops.loop_errors import SettingError, UnknownArgument
from statemachine_trainer.running.predictions import (
    NoPredictions,
    Predictions,
    UnwritablePrediction,
)


class Echo(nn.Module):
    """Predicts its input, and where it stood; does something else with one of the batches."""

    def __init__(self, odd: Any = None) -> None:
        super().__init__()
        self.odd = odd

    def predict_step(self, batch: torch.Tensor, batch_idx: int, dataloader_idx: int) -> Any:
        if self.odd is not None and batch_idx == 20:
            return self.odd(batch)
        return {"value": batch, "place": (dataloader_idx, batch_idx), "name": "echo"}


def batches(count: int, start: int = 0) -> list[torch.Tensor]:
    return [torch.full((2,), float(number)) for number in range(start, start + count)]


def trainer() -> Trainer:
    return Trainer(progress=False, device="cpu", max_epochs=1)


@pytest.mark.parametrize("count", [1, 16, 17, 40])
def test_they_are_those_that_would_be_returned(count: int, tmp_path: Path) -> None:
    written = trainer().predict(Echo(), batches(count), to=tmp_path / "made" / "here")
    kept = trainer().predict(Echo(), batches(count))
    assert len(written) == count
    assert repr([*written]) == repr(kept)
    assert repr([*Predictions(tmp_path / "made" / "here")]) == repr(kept)
    assert repr(written[-1]) == repr(kept[-1])
    assert repr(written[2:20:5]) == repr(kept[2:20:5])


def test_each_of_several_loaders_has_its_own(tmp_path: Path) -> None:
    data = {"one": batches(3), "two": batches(18, 100)}
    found = trainer().predict(Echo(), data, to=tmp_path)
    assert found.loaders == {"one": 3, "two": 18}
    assert [float(one["value"][0]) for one in found.of("two")] == [*range(100, 118)]
    assert [one["place"] for one in found][2:5] == [(0, 2), (1, 0), (1, 1)]
    with pytest.raises(NoPredictions, match=r"'three'.*'one', 'two'"):
        next(found.of("three"))


def test_memory_holds_few_of_them(tmp_path: Path) -> None:
    running, most = trainer(), 0

    @running.on("predict_step")
    def count(trainer: Any) -> None:
        nonlocal most
        loop = trainer.driver.root
        assert isinstance(loop, PredictionLoop)
        most = max(most, len(loop.predictions[0]))

    running.predict(Echo(), batches(40), to=tmp_path)
    assert most == 0
    assert len(running.predict(Echo(), batches(2))) == 2, "the next ones are kept again"


def test_a_view_is_written_without_what_it_is_a_part_of(tmp_path: Path) -> None:
    class Slices(nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return (
                torch.zeros(100_000)[:1] + 0 * batch[:1]
                if len(batch) == 0
                else torch.zeros(100_000)[:1]
            )

    trainer().predict(Slices(), batches(1), to=tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 10_000


def test_what_was_interrupted_is_no_prediction(tmp_path: Path) -> None:
    def fail(batch: torch.Tensor) -> None:
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        trainer().predict(Echo(fail), batches(40), to=tmp_path)
    with pytest.raises(NoPredictions, match="Predict again"):
        Predictions(tmp_path)
    assert len(trainer().predict(Echo(), batches(3), to=tmp_path)) == 3
    assert not [one for one in tmp_path.iterdir() if one.name.startswith(".")]


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    trainer().predict(Echo(), batches(3), to=tmp_path)
    with pytest.raises(SettingError, match="holds predictions already"):
        trainer().predict(Echo(), batches(3), to=tmp_path)


@pytest.mark.parametrize(
    "odd",
    [lambda batch: {"x": [np.zeros(2)]}, lambda batch: object(), lambda batch: {torch.Size([1])}],
)
def test_what_no_file_holds_is_refused(odd: Any, tmp_path: Path) -> None:
    with pytest.raises(UnwritablePrediction, match=r"of batch 20 has a .* at prediction"):
        trainer().predict(Echo(odd), batches(40), to=tmp_path)


def test_damaged_files_are_told(tmp_path: Path) -> None:
    found = trainer().predict(Echo(), batches(20), to=tmp_path)
    (tmp_path / "loader-0-000001.pt").write_bytes(b"PK damaged")
    assert float(found[15]["value"][0]) == 15.0
    with pytest.raises(NoPredictions, match="missing or damaged"):
        found[16]


@pytest.mark.parametrize("to", ["", 3, "s3://bucket/here"])
def test_what_is_no_folder_is_refused(to: Any) -> None:
    with pytest.raises(NoPath):
        trainer().predict(Echo(), batches(3), to=to)


def test_a_misspelt_argument_is_answered(tmp_path: Path) -> None:
    with pytest.raises(UnknownArgument, match=r"return_predictions.*to='folder'"):
        trainer().predict(Echo(), batches(1), return_predictions=False)  # type: ignore[arg-type]


def test_a_paused_fit_is_not_changed(tmp_path: Path) -> None:
    running, net = trainer(), nn.Linear(2, 2)
    given: dict[str, Any] = {
        "loss": lambda out, target: (out - target).square().mean(),
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    }
    data = [(one, one) for one in batches(4)]
    running.fit(net, data, **given, until="epoch_end")
    before = repr(running.state_dict()["context"]["model"])
    assert len(running.predict(data=batches(3), to=tmp_path)) == 3
    assert repr(running.state_dict()["context"]["model"]) == before
    running.run()
    assert running.epoch == 1
