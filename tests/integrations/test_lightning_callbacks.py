"""Every callback that Lightning ships runs here, or says in one line what to use in its place."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning", reason="needs the extra `lightning`")

import lightning.pytorch.callbacks as shipped
import torch
from lightning.pytorch.callbacks import BasePredictionWriter, Callback
from torch import Tensor

from statemachine_trainer import Trainer
from statemachine_trainer.integrations import lightning
from tests.integrations.lightning_kit import (
    Classifier,
    assert_same_bits,
    both,
    data,
    quiet_lightning,
)
from tests.integrations.test_lightning_loggers import Noting
from tests.integrations.test_lightning_resume import WithBackbone

PAGE = Path(__file__).parents[2] / "docs" / "migration.md"

BASES = {
    "BaseFinetuning",
    "BasePredictionWriter",
    "Callback",
    "Checkpoint",
    "ProgressBar",
    "WeightAveraging",
}
"""Classes to inherit from; those that inherit from them are tested."""

REFUSED = {"BatchSizeFinder", "LearningRateFinder"}
"""They run Lightning's own trainer."""

RUN: dict[str, Callable[[Path], Any]] = {
    "BackboneFinetuning": lambda folder: shipped.BackboneFinetuning(1, backbone_initial_lr=0.01),
    "DeviceStatsMonitor": lambda folder: shipped.DeviceStatsMonitor(cpu_stats=False),
    "EarlyStopping": lambda folder: shipped.EarlyStopping("val_loss", patience=0),
    "EMAWeightAveraging": lambda folder: shipped.EMAWeightAveraging(decay=0.9),
    "GradientAccumulationScheduler": lambda folder: shipped.GradientAccumulationScheduler({1: 2}),
    "LambdaCallback": lambda folder: shipped.LambdaCallback(on_fit_end=lambda *_: None),
    "LearningRateMonitor": lambda folder: shipped.LearningRateMonitor(log_momentum=True),
    "ModelCheckpoint": lambda folder: shipped.ModelCheckpoint(folder, monitor="val_loss"),
    "ModelPruning": lambda folder: shipped.ModelPruning(
        "l1_unstructured", amount=0.3, use_lottery_ticket_hypothesis=False
    ),
    "ModelSummary": lambda folder: shipped.ModelSummary(max_depth=2),
    "OnExceptionCheckpoint": lambda folder: shipped.OnExceptionCheckpoint(folder),
    "RichModelSummary": lambda folder: shipped.RichModelSummary(),
    "RichProgressBar": lambda folder: shipped.RichProgressBar(),
    "SpikeDetection": lambda folder: shipped.SpikeDetection(
        window=2, warmup=100, exclude_batches_path=folder / "skipped.json"
    ),
    "StochasticWeightAveraging": lambda folder: shipped.StochasticWeightAveraging(
        0.05, swa_epoch_start=1, annealing_epochs=2
    ),
    "ThroughputMonitor": lambda folder: shipped.ThroughputMonitor(lambda batch: len(batch[0])),
    "Timer": lambda folder: shipped.Timer("00:01:00:00"),
    "TQDMProgressBar": lambda folder: shipped.TQDMProgressBar(),
}  # fmt: skip

LOGGING = {"DeviceStatsMonitor", "LearningRateMonitor", "ThroughputMonitor"}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet_lightning():
        yield


class Shown(WithBackbone):
    """Has what callbacks of all kinds look at."""

    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(2, 8)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


def all_shipped() -> set[str]:
    kinds = {
        n: k for n, k in vars(shipped).items() if inspect.isclass(k) and issubclass(k, Callback)
    }
    return set(kinds) - BASES


def test_each_is_run_or_refused() -> None:
    assert all_shipped() == set(RUN) | REFUSED


def test_each_has_its_row_in_the_docs() -> None:
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index("| callback of Lightning |") :].split("\n\n")[0]
    named = set(
        re.findall(r"`([A-Z]\w+)`", "\n".join(row.split("|")[1] for row in table.splitlines()))
    )
    assert named >= all_shipped()
    assert named <= {*all_shipped(), *BASES}


@pytest.mark.parametrize("name", sorted(set(RUN) - LOGGING))
def test_a_fit_with_it_gives_the_same_bits(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = iter((tmp_path / "theirs", tmp_path / "ours"))
    shows = {
        "enable_progress_bar": name.endswith("Bar"),
        "enable_checkpointing": "Checkpoint" in name,
    }
    theirs, ours = both(
        lambda notes: (Shown(), [RUN[name](next(folders))]),
        data,
        lambda: data(20),
        theirs=shows,
        max_epochs=3,
    )
    if name == "StochasticWeightAveraging":
        theirs.steps -= 1  # Lightning counts one for the epoch that measures batch norm
    assert_same_bits(theirs, ours)


@pytest.mark.parametrize("name", sorted(LOGGING))
def test_it_writes_to_the_loggers(name: str, tmp_path: Path) -> None:
    noting = Noting()
    model = lightning.module(
        Shown(), callbacks=RUN[name](tmp_path), loggers=noting, log_every_n_steps=1
    )
    Trainer(max_epochs=2, device="cpu", progress=False).fit(model, data(), data(20))
    names = {name for _, names in noting.written for name in names}
    wanted = {
        "DeviceStatsMonitor": [], "LearningRateMonitor": ["lr-Adam", "lr-Adam-momentum"],
        "ThroughputMonitor": ["train/samples", "train/batches"],
    }  # fmt: skip
    assert names >= set(wanted[name])


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_runs_lightnings_own_trainer_says_what_to_do(name: str) -> None:
    model = lightning.module(Shown(), callbacks=getattr(shipped, name)())
    with pytest.raises(
        lightning.NotSupported, match=f"{name} runs Lightning's own trainer.*yourself"
    ):
        Trainer(max_epochs=1, device="cpu", progress=False).fit(model, data())


@pytest.mark.parametrize("interval", ["batch", "epoch"])
def test_a_writer_of_predictions_gets_them_with_the_numbers_of_the_samples(interval: Any) -> None:
    written: list[Any] = []

    class Writing(BasePredictionWriter):
        def write_on_batch_end(
            self, trainer: Any, module: Any, prediction: Any, indices: Any, *_: Any
        ) -> None:
            written.append((len(prediction), indices))

        def write_on_epoch_end(
            self, trainer: Any, module: Any, predictions: Any, indices: Any
        ) -> None:
            written.extend(zip(map(len, predictions), indices[0], strict=True))

    class Predicting(Classifier):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch[0])

    model = lightning.module(Predicting(), callbacks=Writing(interval))
    Trainer(max_epochs=1, device="cpu", progress=False).predict(model, data(25, 10, shuffle=False))
    assert written == [(10, [*range(10)]), (10, [*range(10, 20)]), (5, [*range(20, 25)])]


def test_a_checkpoint_is_written_when_an_exception_ends_the_fit(tmp_path: Path) -> None:
    class Failing(Classifier):
        def on_train_epoch_end(self) -> None:
            raise ValueError("boom")

    model = lightning.module(Failing(), callbacks=shipped.OnExceptionCheckpoint(tmp_path))
    with pytest.raises(ValueError, match="boom"):
        Trainer(max_epochs=1, device="cpu", progress=False).fit(model, data())
    assert (tmp_path / "on_exception.ckpt").is_file()
