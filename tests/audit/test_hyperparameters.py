"""What a run is set to stands in its record, and is told to trackers."""

from __future__ import annotations

import subprocess
import warnings
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from statemachine_trainer import Run, Trainer, run_record
from statemachine_trainer.audit.settings_record import SettingsChanged
from statemachine_trainer.integrations.trackers import Tracker
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.run_record import ask_for_commit, commit_of
from statemachine_trainer.testing import assert_resumable


class Net(nn.Module):
    """Keeps what it was made with, and changes some of it as it trains."""

    def __init__(self, width: int = 8, heat: float = 1.0) -> None:
        super().__init__()
        self.width = width
        self.heat = heat
        self.layers = nn.Sequential(nn.Linear(4, width), nn.Linear(width, 1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.heat = 0.5
        loss: torch.Tensor = self.layers(batch[0]).pow(2).mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


@dataclass
class Config:
    name: str = "small"
    inner: dict[str, Any] = field(default_factory=lambda: {"depth": 2, "kind": nn.ReLU})


def data() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.ones(8, 4)), batch_size=4)


def make_trainer(**settings: Any) -> Trainer:
    return Trainer(**{"max_epochs": 1, "progress": False, "device": "cpu", **settings})


def test_model_optimizer_trainer_and_data_are_recorded_without_a_word(tmp_path: Path) -> None:
    make_trainer(run=tmp_path, seed=7, clip_norm=1.0).fit(Net(width=3), data())
    found = Run(tmp_path).hyperparameters()
    wanted = {
        **{"model": "Net", "width": 3, "heat": 1.0, "optimizer": "SGD", "lr": 0.05},
        **{"max_epochs": 1, "clip_norm": 1.0, "precision": "32", "seed": 7, "batch_size": 4},
    }
    assert {name: found[name] for name in wanted} == wanted


def test_the_settings_of_a_run_are_all_that_its_trainer_was_made_with(tmp_path: Path) -> None:
    make_trainer(run=tmp_path, seed=7, precision="bf16").fit(Net(), data())
    settings = Run(tmp_path).settings()
    assert settings["precision"] == "'bf16'"
    assert (settings["seed"], settings["prefetch"]) == ("7", "False")


@pytest.mark.parametrize(
    "given, wanted",
    [
        ({"lr": 3, "data": {"path": Path("x")}}, {"lr": 3, "data.path": "x", "optimizer/lr": 0.05}),
        (Config(), {"name": "small", "inner.depth": 2, "inner.kind": "ReLU", "lr": 0.05}),
        (Namespace(bad=float("nan"), odd=object()), {"bad": "nan", "odd": "object"}),
    ],
)
def test_ones_own_are_a_dict_a_dataclass_or_a_namespace(
    given: object, wanted: Mapping[str, object], tmp_path: Path
) -> None:
    mine = make_trainer(run=tmp_path, hparams=given)
    mine.fit(Net(), data())
    found = Run(tmp_path).hyperparameters()
    assert {name: found[name] for name in wanted} == wanted
    assert mine.hyperparameters == found


def test_what_holds_itself_or_is_nested_without_end_does_no_harm(tmp_path: Path) -> None:
    given: dict[str, Any] = {"lr": 0.5, "list": [], "deep": 1, "long": [1]}
    given["me"] = given
    given["list"] += [given["list"], given["list"]]
    for _ in range(2000):
        given["deep"], given["long"] = {"a": given["deep"]}, [given["long"]]
    make_trainer(run=tmp_path, hparams=given).fit(Net(), data())
    found = Run(tmp_path).hyperparameters()
    assert found["lr"] == 0.5
    assert (found["me"], found["list"], found["long"]) == ("dict", "list", "list")


@pytest.mark.parametrize("wrong", [3, "lr=0.1", ["lr"], Config])
def test_anything_else_is_refused(wrong: object) -> None:
    with pytest.raises(SettingError, match=r"hparams=.* give a dict, a dataclass or an argparse"):
        make_trainer(hparams=wrong)


def test_hparams_of_the_model_stand_for_the_arguments_of_its_constructor() -> None:
    model = Net()
    model.hparams = {"width": "wide"}  # type: ignore[assignment]  # as Lightning's have them
    mine = make_trainer()
    mine.start(model, data())
    assert mine.hyperparameters["width"] == "wide"
    assert "heat" not in mine.hyperparameters


def test_a_second_group_of_parameters_has_a_name_of_its_own() -> None:
    model = Net()
    first, second = model.layers
    groups = [{"params": first.parameters(), "lr": 0.1}, {"params": second.parameters(), "lr": 1.0}]
    mine = make_trainer()
    mine.start(
        nn.Sequential(model.layers), data(), loss=nn.MSELoss(), optimizer=torch.optim.SGD(groups)
    )
    assert mine.hyperparameters["lr"] == 0.1
    assert mine.hyperparameters["optimizer 0.1/lr"] == 1.0


def test_a_script_that_resumes_is_told_what_it_has_changed(tmp_path: Path) -> None:
    make_trainer(checkpoints=tmp_path, hparams={"task": "a"}).fit(Net(width=4), data())
    later = make_trainer(checkpoints=tmp_path, hparams={"task": "b"}, max_epochs=2)
    with pytest.warns(SettingsChanged) as told:
        later.fit(Net(width=4, heat=2.0), data(), resume="auto")
    text = str(told[0].message)
    assert "hparams of the trainer: task was 'a', is 'b' now. The script's holds" in text
    assert "the model (Net): heat was 1.0, is 2.0 now. The script's holds" in text
    assert Run(tmp_path).hyperparameters()["task"] == "b"


def test_a_resumed_run_has_the_record_of_one_that_was_never_stopped(tmp_path: Path) -> None:
    given = {"checkpoints": tmp_path, "hparams": {"task": "a"}, "max_epochs": 2}
    first = make_trainer(**given)
    first.fit(Net(), data(), until="epoch_end")
    first.checkpoint()
    before = Run(tmp_path).hyperparameters()
    with warnings.catch_warnings():
        warnings.simplefilter("error", SettingsChanged)
        later = make_trainer(**given)
        del first
        later.fit(Net(), data(), resume="auto")
    assert Run(tmp_path).hyperparameters() == before == later.hyperparameters


def start_with_hparams() -> Trainer:
    trainer = make_trainer(hparams={"task": "a"})
    torch.manual_seed(0)
    trainer.start(Net(), data())
    return trainer


def test_it_resumes_at_every_boundary() -> None:
    assert_resumable(start_with_hparams, exhaustive=True, fresh_process=False)


def test_a_tracker_is_told_before_its_first_metrics() -> None:
    class Noting(Tracker):
        def __init__(self) -> None:
            super().__init__(every=1)
            self.heard: list[object] = []

        def describe(self, hyperparameters: Mapping[str, Any]) -> None:
            self.heard.append(hyperparameters["task"])

        def write(self, step: int, metrics: Mapping[str, float]) -> None:
            self.heard.append(step)

    noting = Noting()
    make_trainer(callbacks=[noting], hparams={"task": "a"}).fit(Net(), data())
    assert noting.heard == ["a", 1, 2]


def test_the_commit_of_the_code_is_known_and_whether_files_differ_from_it(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        names = ("-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        command = ["git", *names, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    commit_of.cache_clear()
    git("init", "-q")
    (tmp_path / "train.py").write_text("1")
    git("add", ".")
    git("commit", "-qm", "Begin")
    commit = git("rev-parse", "HEAD")
    assert commit_of(tmp_path) == commit
    (tmp_path / "train.py").write_text("2")
    commit_of.cache_clear()
    assert commit_of(tmp_path) == f"{commit}-dirty"
    assert commit_of(Path("/")) is None


def test_the_commit_may_be_asked_for_before_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    ask = run_record._ask_git

    def asking(folder: Path) -> subprocess.Popen[bytes]:
        asked.append(folder)
        return ask(folder)

    monkeypatch.setattr(run_record, "_ask_git", asking)
    monkeypatch.setattr(run_record, "_folder_of_code", lambda: tmp_path)
    ask_for_commit()
    ask_for_commit()
    assert len(asked) == 1
    assert commit_of(tmp_path) is None  # it is no folder of git
    ask_for_commit()
    assert len(asked) == 1
