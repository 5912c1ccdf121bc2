"""Switches of torch are set while a trainer runs, and put back afterwards."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from statemachine_trainer import Trainer
from statemachine_trainer.audit.settings_record import SettingsChanged
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.testing import assert_resumable
from tests.loops.inner_kit import make_batches, make_net

SGD = partial(torch.optim.SGD, lr=0.1)
FIT: dict[str, Any] = {"loss": nn.functional.mse_loss, "optimizer": SGD}
ALL: dict[str, Any] = {
    "deterministic": True,
    "detect_anomaly": True,
    "matmul_precision": "high",
}


def trainer_with(**settings: Any) -> Trainer:
    return Trainer(**{"progress": False, "device": "cpu", "max_epochs": 1, **settings})


def as_they_are() -> dict[str, Any]:
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn": torch.is_deterministic_algorithms_warn_only_enabled(),
        "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "benchmark": torch.backends.cudnn.benchmark,
        "anomaly": torch.is_anomaly_enabled(),
        "precision": torch.get_float32_matmul_precision(),
    }


class Looks(nn.Linear):
    """Notes the switches in its training step, and may fail there."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__(2, 1)
        self.fails = fails
        self.saw: dict[str, Any] = {}

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.saw = as_they_are()
        if self.fails:
            raise RuntimeError("on purpose")
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters())


@pytest.mark.parametrize(
    "settings, seen",
    [
        ({"deterministic": True}, {"deterministic": True, "warn": False, "workspace": ":4096:8"}),
        ({"deterministic": "warn"}, {"deterministic": True, "warn": True, "workspace": ":4096:8"}),
        ({"deterministic": False}, {"deterministic": False}),
        ({"benchmark": True}, {"benchmark": True}),
        ({"detect_anomaly": True}, {"anomaly": True}),
        ({"matmul_precision": "medium"}, {"precision": "medium"}),
    ],
)
@pytest.mark.parametrize("fails", [False, True])
def test_they_hold_within_the_fit_alone(
    settings: dict[str, Any], seen: dict[str, Any], fails: bool
) -> None:
    before, model = as_they_are(), Looks(fails=fails)
    trainer = trainer_with(**settings)
    if fails:
        with pytest.raises(RuntimeError, match="on purpose"):
            trainer.fit(model, make_batches(1))
    else:
        trainer.fit(model, make_batches(1))
    assert model.saw == {**before, **seen}
    assert as_they_are() == before


def test_between_two_steps_they_are_as_they_were() -> None:
    before, trainer = as_they_are(), trainer_with(**ALL)
    trainer.start(Looks(), make_batches(2))
    for _ in trainer.moments():
        assert as_they_are() == before


def test_those_of_the_script_stay_where_the_trainer_says_nothing() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        model = Looks()
        trainer_with(detect_anomaly=True).fit(model, make_batches(1))
        assert (model.saw["deterministic"], model.saw["warn"]) == (True, True)
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_backward_pass_that_yields_nan_is_told() -> None:
    class Breaks(Looks):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss: torch.Tensor = (self(batch[0]) * 0).sqrt().mul(0).sum()
            return loss

    with (
        pytest.warns(UserWarning, match="Anomaly Detection|Error detected in"),
        pytest.raises(RuntimeError, match="returned nan values"),
    ):
        trainer_with(detect_anomaly=True).fit(Breaks(), make_batches(1))


def test_a_resumed_run_is_told_of_another_one(tmp_path: Path) -> None:
    trainer_with(checkpoints=tmp_path).fit(make_net(), make_batches(2), **FIT)
    trainer = trainer_with(checkpoints=tmp_path, matmul_precision="high", max_epochs=2)
    with pytest.warns(SettingsChanged, match="matmul_precision was not there, is 'high' now"):
        trainer.fit(make_net(), make_batches(2), **FIT, resume="auto")


@pytest.mark.parametrize(
    "settings",
    [
        {"deterministic": 1},
        {"deterministic": "yes"},
        {"benchmark": 0},
        {"detect_anomaly": None},
        {"matmul_precision": "low"},
        {"matmul_precision": True},
        {"deterministic": True, "benchmark": True},
    ],
)
def test_what_means_nothing_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=next(iter(settings))):
        trainer_with(**settings)


@pytest.mark.filterwarnings("ignore:Anomaly Detection:UserWarning")
def test_a_fit_with_all_of_them_resumes_anywhere() -> None:
    def make_trainer() -> Trainer:
        trainer = trainer_with(**ALL)
        trainer.start(make_net(), make_batches(3), **FIT)
        return trainer

    assert_resumable(make_trainer, examples=6, seed=0)
