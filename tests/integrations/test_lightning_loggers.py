"""Lightning's loggers are written to as Lightning writes to them."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning", reason="needs the extra `lightning`")

import lightning as L
import torch
import torchmetrics
from lightning.pytorch.callbacks import DeviceStatsMonitor, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor

from statemachine_trainer import Checkpoints, Trainer
from statemachine_trainer.integrations import lightning
from tests.integrations.lightning_kit import Classifier, data, quiet, quiet_lightning


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet_lightning():
        yield


class Noting(Logger):
    """Notes what is written to it."""

    name, version, save_dir = "noting", 0, None

    def __init__(self) -> None:
        self.written: list[tuple[int, list[str]]] = []
        self.ended: list[str] = []
        self.parameters: dict[str, Any] = {}

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        self.written.append((step, sorted(metrics)))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.parameters = dict(params)

    def finalize(self, status: str) -> None:
        self.ended.append(status)


class Logging(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("a", loss)
        self.log("b", loss, on_step=True, on_epoch=True)
        self.log("hidden", loss, logger=False)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", self.loss(batch), on_step=True, on_epoch=True)

    def on_train_epoch_end(self) -> None:
        self.log("c", 1.0)


def fit_in_both(
    callbacks: Any = list, kind: Callable[[], Logging] = Logging, **settings: Any
) -> tuple[Noting, Noting]:
    theirs, ours = Noting(), Noting()
    with quiet():
        torch.manual_seed(0)
        L.Trainer(
            accelerator="cpu", logger=theirs, max_epochs=2, log_every_n_steps=4, callbacks=callbacks(),
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            accumulate_grad_batches=settings.get("accumulate", 1),
            val_check_interval=settings.get("validate_every", 1.0),
        ).fit(kind(), data(), data(20))  # fmt: skip
    torch.manual_seed(0)
    model = lightning.module(kind(), loggers=ours, log_every_n_steps=4, callbacks=callbacks())
    Trainer(max_epochs=2, device="cpu", progress=False, **settings).fit(model, data(), data(20))
    return theirs, ours


def test_names_and_steps_are_those_of_lightning() -> None:
    theirs, ours = fit_in_both()
    assert ours.written == theirs.written
    assert ours.parameters == theirs.parameters == {"lr": 0.1}
    assert ours.ended == theirs.ended == ["success"]


def test_steps_are_optimizer_steps_under_accumulation() -> None:
    theirs, ours = fit_in_both(accumulate=2)
    assert ours.written == theirs.written


def test_steps_go_on_after_a_validation_within_the_epoch() -> None:
    theirs, ours = fit_in_both(validate_every=0.5)
    assert ours.written == theirs.written


class LoggingObjects(Logging):
    def __init__(self) -> None:
        super().__init__()
        self.mean, self.newest = torchmetrics.MeanMetric(), torchmetrics.MeanMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.mean(loss)
        self.newest(loss)
        self.log("mean", self.mean, on_step=True, on_epoch=True)
        self.log("newest", self.newest)
        return loss


def test_a_metric_object_is_written_by_the_names_of_step_and_epoch() -> None:
    theirs, ours = fit_in_both(kind=LoggingObjects)
    assert ours.written == theirs.written


def test_callbacks_that_log_write_the_same() -> None:
    theirs, ours = fit_in_both(lambda: [LearningRateMonitor(), DeviceStatsMonitor(cpu_stats=False)])
    assert [one for one in ours.written if "lr-SGD" in one[1]] == [
        one for one in theirs.written if "lr-SGD" in one[1]
    ]


def test_a_module_reaches_its_loggers() -> None:
    class Reaching(Logging):
        def on_fit_start(self) -> None:
            assert self.logger is self.loggers[0]
            self.logger.log_metrics({"own": 1.0}, step=0)
            self.folder = self.trainer.log_dir

    noting = Noting()
    model = lightning.module(Reaching(), loggers=[noting, Noting()])
    Trainer(max_epochs=1, device="cpu", progress=False).fit(model, data(20))
    assert noting.written[0] == (0, ["own"])
    assert model.module.trainer.log_every_n_steps == 50


def test_a_logger_hears_that_a_fit_has_failed() -> None:
    class Failing(Logging):
        def on_train_epoch_end(self) -> None:
            raise ValueError("boom")

    noting = Noting()
    with pytest.raises(ValueError, match="boom"):
        Trainer(max_epochs=1, device="cpu", progress=False).fit(
            lightning.module(Failing(), loggers=noting), data(20)
        )
    assert noting.ended == ["failed"]


def test_steps_never_go_back_after_a_resume(tmp_path: Path) -> None:
    noting = Noting()

    def fit(until: str | None) -> None:
        torch.manual_seed(0)
        model = lightning.module(Logging(), loggers=noting, log_every_n_steps=2)
        checkpoints = Checkpoints(tmp_path, every="1 batch")
        one = Trainer(max_epochs=3, device="cpu", progress=False, checkpoints=checkpoints)
        one.fit(model, data(), data(20), resume="auto", until=until)

    fit("validation_end")
    first = len(noting.written)
    fit(None)
    steps = [step for step, names in noting.written if "val_step" not in names]
    assert steps == sorted(steps)
    assert len(noting.written) > first
    assert steps[-1] == 17


def test_files_of_the_csv_logger_hold_what_was_logged(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    model = lightning.module(Logging(), loggers=logger, log_every_n_steps=2)
    Trainer(max_epochs=1, device="cpu", progress=False).fit(model, data(), data(20))
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["b_step"]] == ["1", "3", "5"]
    assert [row["step"] for row in rows if row["b_epoch"]] == ["5"]
    assert [row["step"] for row in rows if row["val_epoch"]] == ["5"]


def test_the_tensorboard_logger_writes_its_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    logger = TensorBoardLogger(tmp_path)
    model = lightning.module(Logging(), loggers=logger, log_every_n_steps=2)
    Trainer(max_epochs=1, device="cpu", progress=False).fit(model, data(), data(20))
    assert [*Path(logger.log_dir).glob("events.out.*")]
    assert model.module.trainer.log_dir == logger.log_dir


class Leaves(Logging):
    """Ends the first fit between two checkpoints, when more was written than they know of."""

    leaves = True

    def on_train_batch_end(self, *_: Any) -> None:
        if self.leaves and self.global_step == 10:
            raise KeyboardInterrupt


DOES_NOT_LEAVE = pytest.mark.filterwarnings(
    "ignore:(?s).*leaves was True, is False now:statemachine_trainer.audit.settings_record.SettingsChanged"
)


def leave_and_resume(folder: Path, make: Callable[[], Any]) -> list[Any]:
    loggers = []
    for leaves in (True, False):
        module, logger = Leaves(), make()
        module.leaves = leaves
        loggers.append(logger)
        model = lightning.module(module, loggers=logger, log_every_n_steps=2)
        one = Trainer(max_epochs=2, device="cpu", progress=False, checkpoints=folder / "run")
        try:
            one.fit(model, data(), data(20), resume="auto")
        except KeyboardInterrupt:
            assert leaves
    return loggers


@DOES_NOT_LEAVE
def test_the_files_of_tensorboard_count_no_step_twice_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    accumulators = import_module("tensorboard.backend.event_processing.event_accumulator")
    _, logger = leave_and_resume(tmp_path, lambda: TensorBoardLogger(tmp_path, version="same"))
    read = accumulators.EventAccumulator(logger.log_dir).Reload()
    assert len([*Path(logger.log_dir).glob("events.out.*")]) == 2
    assert [one.step for one in read.Scalars("b_step")] == [1, 3, 5, 7, 9, 11]
    assert [one.step for one in read.Scalars("val_epoch")] == [5, 11]


@DOES_NOT_LEAVE
@pytest.mark.parametrize("version", [None, 0])
def test_rows_of_the_csv_logger_never_go_back(version: int | None, tmp_path: Path) -> None:
    for logger in leave_and_resume(tmp_path, lambda: CSVLogger(tmp_path, version=version)):
        with (Path(logger.log_dir) / "metrics.csv").open() as file:
            steps = [int(row["step"]) for row in csv.DictReader(file) if row["b_step"]]
        assert steps == sorted(set(steps))
        assert steps


@pytest.mark.slow
@pytest.mark.parametrize("service", ["mlflow", "wandb"])
def test_a_logger_of_a_service_keeps_a_run_on_this_machine(service: str, tmp_path: Path) -> None:
    import os
    import subprocess

    pytest.importorskip(service)
    make = {
        "mlflow": "MLFlowLogger('mine', tracking_uri='sqlite:///store.db')",
        "wandb": "WandbLogger(offline=True, save_dir='.')",
    }[service]
    code = (
        "from lightning.pytorch.loggers import MLFlowLogger, WandbLogger\n"
        "from statemachine_trainer import Trainer\n"
        "from statemachine_trainer.integrations import lightning\n"
        "from tests.integrations.test_lightning_loggers import Logging, data\n"
        f"logger = {make}\n"
        "model = lightning.module(Logging(), loggers=logger, log_every_n_steps=2)\n"
        "Trainer(max_epochs=1, device='cpu', progress=False).fit(model, data(), data(20))\n"
        "if hasattr(logger, 'run_id'):\n"
        "    run = logger.experiment.get_run(logger.run_id)\n"
        "    print(run.info.status, sorted(run.data.metrics))\n"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {
        **os.environ, "PYTHONPATH": str(root), "HOME": str(tmp_path), "WANDB_SILENT": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, env=environment,
        capture_output=True, text=True, timeout=150, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if service == "mlflow":
        assert "FINISHED" in done.stdout
        assert "b_epoch" in done.stdout
    else:
        (written,) = tmp_path.rglob("run-*.wandb")
        assert b"b_epoch" in written.read_bytes()
