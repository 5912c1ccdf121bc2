"""Trackers of experiments as callbacks: CSV, TensorBoard, Weights & Biases, MLflow, trackio.

    Trainer(callbacks=[TensorBoard("runs/mine")])

Each is a `Tracker` with a few lines that hand metrics on; one for another service is as short. None
of them is needed for a run to be recorded: see `Trainer(run=...)`.
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

from statemachine_trainer.files import check_writable, path_given
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.machine.keywords import HasSettings
from statemachine_trainer.observe.readings import Part, values_of_step

_log = logging.getLogger(__name__)
_PARAMS_AT_ONCE: Final = 100
"""Parameters that MLflow takes in one call."""


class MissingTracker(StateMachineError):
    """The package of a tracker is not installed."""


class Tracker(HasSettings):
    """A callback that hands the metrics of a run on. Subclasses write them.

    Metrics are named after the part of the run that they are of: `train/loss` (of an epoch),
    `validation/loss`, `test/loss`, and `step/loss` for those logged with `on_step`, else the loss.

    Before the first of them it is told the hyperparameters of the run (`Trainer.hyperparameters`).

    Args:
        every: Batches from one reading of steps to the next; 0 for none.
    """

    writes_records: ClassVar[bool] = True
    """It is left out of a dev run."""

    _told: Mapping[str, Any] | None = None
    """The hyperparameters that the service was told."""

    _failing = False
    """Whether it could not write the last time."""

    def __init__(self, *, every: int = 50) -> None:
        self.every = every

    def describe(self, hyperparameters: Mapping[str, Any]) -> None:
        """Take the hyperparameters of the run: before the first metrics, and whenever they are others.

        Args:
            hyperparameters: Numbers, texts and None by name.
        """

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write metrics.

        Args:
            step: Optimizer steps done.
            metrics: By name.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Write what waits: the fit has ended. Another one may follow."""

    def close_after(self, error: BaseException) -> None:
        """Write what waits: an exception has ended the run. Services that know how a run ends are told.

        Args:
            error: The exception; a `KeyboardInterrupt` or `SystemExit` stops the run, any other fails it.
        """
        self.close()

    def check(self) -> None:
        """Before a fit begins, refuse a place that takes nothing. None is looked at unless a subclass does."""

    def on_fit_start(self) -> None:
        """Check the place."""
        self.check()

    def on_batch_end(self, trainer: Any) -> None:
        """Hand on what was logged on the step, every so many batches."""
        if self.every and trainer.context.counts.batch % self.every == 0:
            self._hand_on(trainer, "step", values_of_step(trainer.context))

    def on_epoch_end(self, trainer: Any) -> None:
        """Hand on the metrics of the epoch."""
        self._hand_on(trainer, "train", trainer.context.train_metrics.compute())

    def on_exit_validation_end(self, trainer: Any) -> None:
        """Hand on the metrics of the validation."""
        self._hand_on(trainer, "validation", trainer.context.validation_metrics.compute())

    def on_exit_test_end(self, trainer: Any) -> None:
        """Hand on the metrics of the test."""
        self._hand_on(trainer, "test", trainer.context.validation_metrics.compute())

    def on_exit_fit(self) -> None:
        """Close."""
        with self._going_on():
            self.close()

    def failed(self, error: BaseException) -> None:
        """Close, for an exception ends the run."""
        with self._going_on():
            self.close_after(error)

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """Context manager around writing: a full disk, or a service that is not reached, stops no training."""
        try:
            yield
        except OSError as error:
            if not self._failing:
                _log.warning(
                    "%s cannot write: %s. The run goes on; what is measured meanwhile may be missing there.",
                    type(self).__name__,
                    error,
                )
            self._failing = True
        else:
            self._failing = False

    def _tell(self, hyperparameters: Mapping[str, Any]) -> None:
        if hyperparameters != self._told:
            self._told = hyperparameters
            self.describe(hyperparameters)

    def _hand_on(self, trainer: Any, part: Part, values: Mapping[str, Any]) -> None:
        if values:
            metrics = {f"{part}/{name}": float(value) for name, value in values.items()}
            with self._going_on():
                self._tell(trainer.hyperparameters)
                self.write(trainer.steps, metrics)


class CSV(Tracker):
    """Writes a table of comma-separated values: a row for each step that something was measured at, a column a metric.

    A run that was resumed goes on in the file: what it measures anew replaces what was measured by the one before. The
    file appears as a whole, so whoever reads it meanwhile sees the one before.

    Args:
        file: Where, such as "runs/mine/metrics.csv".
        every: As for `Tracker`.
    """

    def __init__(self, file: str | Path, *, every: int = 50) -> None:
        super().__init__(every=every)
        self.file = path_given(file)
        self._rows: list[dict[str, str]] | None = None

    def check(self) -> None:
        check_writable(self.file.parent, f"CSV({str(self.file)!r})")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._rows is None:
            # A test stands at the last step of the fit, whose row is to stay.
            tests = all(name.startswith("test/") for name in metrics)
            self._rows = [
                row for row in self._earlier() if int(row["step"]) < step + (1 if tests else 0)
            ]
        if not self._rows or self._rows[-1]["step"] != str(step):
            self._rows.append({"step": str(step)})
        self._rows[-1].update({name: repr(value) for name, value in metrics.items()})
        if not all(name.startswith("step/") for name in metrics):
            self._save()

    def close(self) -> None:
        if self._rows is not None:
            self._save()
        self._rows = None

    def _earlier(self) -> list[dict[str, str]]:
        try:
            with self.file.open(newline="", encoding="utf-8") as file:
                rows = [
                    {name: value for name, value in row.items() if value}
                    for row in csv.DictReader(file)
                ]
        except FileNotFoundError:
            return []
        if not all(row.get("step", "").isdecimal() for row in rows):
            raise SettingError(
                f"CSV({str(self.file)!r}): this file has no column of steps, so it is not one of this tracker. Name "
                "another one."
            )
        return rows

    def _save(self) -> None:
        rows = self._rows or []
        names = dict.fromkeys(["step", *(name for row in rows for name in row)])
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_name(f".{self.file.name}.{os.getpid()}")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, [*names])
            table.writeheader()
            table.writerows(rows)
        temporary.replace(self.file)


class TensorBoard(Tracker):
    """Writes event files for TensorBoard.

    A run that was resumed goes on in a file of its own, and what it measures anew replaces what was
    measured by the one before.

    Args:
        folder: Where; that of the run, for one.
        every: As for `Tracker`.

    Raises:
        MissingTracker: The extra `tensorboard` is not installed.
    """

    def __init__(self, folder: str | Path, *, every: int = 50) -> None:
        super().__init__(every=every)
        _check_installed("tensorboard")
        self.folder = path_given(folder)
        self._writer: Any = None
        self._written = False
        self._hyperparameters: Mapping[str, Any] | None = None

    def check(self) -> None:
        check_writable(self.folder, f"TensorBoard({str(self.folder)!r})")

    def describe(self, hyperparameters: Mapping[str, Any]) -> None:
        self._hyperparameters = hyperparameters

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._writer is None:
            module = importlib.import_module("torch.utils.tensorboard")
            # A test stands at the last step of the fit, whose points are to stay.
            stays = self._written or all(name.startswith("test/") for name in metrics)
            purge = None if stays else step
            self._writer = module.SummaryWriter(str(self.folder), purge_step=purge)
            self._written = True
        given, self._hyperparameters = self._hyperparameters, None
        if given is not None:
            summary = importlib.import_module("torch.utils.tensorboard.summary")
            known = {name: value for name, value in given.items() if value is not None}
            for one in summary.hparams(known, {}):
                self._writer.file_writer.add_summary(one)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        if all(name.startswith("test/") for name in metrics):  # nobody closes after a test
            self._writer.flush()

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


class WandB(Tracker):
    """Logs to Weights & Biases.

    Args:
        every: As for `Tracker`.
        **init: For `wandb.init`: `project`, `name`, `mode="offline"`, `id` and `resume`, ...

    Raises:
        MissingTracker: The extra `wandb` is not installed.
    """

    def __init__(self, *, every: int = 50, **init: Any) -> None:
        super().__init__(every=every)
        _check_installed("wandb")
        self._init = init
        self._run: Any = None
        self._hyperparameters: Mapping[str, Any] | None = None

    def describe(self, hyperparameters: Mapping[str, Any]) -> None:
        self._hyperparameters = hyperparameters

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._run is None:
            self._run = importlib.import_module("wandb").init(**self._init)
            # What comes after a fit, such as a test, goes on in the same run.
            self._init = {"resume": "allow", **self._init, "id": self._run.id}
        given, self._hyperparameters = self._hyperparameters, None
        if given is not None:
            # What the user gave `wandb.init` as `config` stays beside it.
            self._run.config.update(dict(given), allow_val_change=True)
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._finish(0)

    def close_after(self, error: BaseException) -> None:
        self._finish(1)

    def _finish(self, exit_code: int) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.finish(exit_code=exit_code)


class MLflow(Tracker):
    """Logs to MLflow.

    Args:
        experiment: Name of the experiment; made if need be.
        uri: Where it is kept, such as "sqlite:///mlflow.db", a folder, or a server; MLflow's own
            choice unless given.
        run_id: Go on with this run of MLflow; a new one unless given.
        every: As for `Tracker`.

    Attributes:
        run_id: The run of MLflow that is written to; None before the first metric.

    Raises:
        MissingTracker: The extra `mlflow` is not installed.
    """

    def __init__(
        self,
        experiment: str = "Default",
        *,
        uri: str | None = None,
        run_id: str | None = None,
        every: int = 50,
    ) -> None:
        super().__init__(every=every)
        _check_installed("mlflow")
        self.experiment = experiment
        self.uri = uri
        self.run_id = run_id
        self._client: Any = None
        self._hyperparameters: Mapping[str, Any] | None = None

    def describe(self, hyperparameters: Mapping[str, Any]) -> None:
        self._hyperparameters = hyperparameters

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._client is None:
            self._open()
        metric = importlib.import_module("mlflow.entities").Metric
        self._write_hyperparameters()
        now = int(time.time() * 1000)
        values = [metric(name, value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self.run_id, metrics=values)

    def close(self) -> None:
        self._finish("FINISHED")

    def close_after(self, error: BaseException) -> None:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        self._finish("KILLED" if stopped else "FAILED")

    def _finish(self, status: str) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.set_terminated(self.run_id, status=status)

    def _write_hyperparameters(self) -> None:
        """Write those that the run of MLflow has not: there they are written once, and never change."""
        given, self._hyperparameters = self._hyperparameters, None
        if given is None:
            return
        param = importlib.import_module("mlflow.entities").Param
        known = self._client.get_run(self.run_id).data.params
        # Names may have letters, digits and ` /.-_` alone.
        named = {re.sub(r"[^\w ./-]", "_", name): str(value) for name, value in given.items()}
        new = [param(name, value) for name, value in named.items() if name not in known]
        for start in range(0, len(new), _PARAMS_AT_ONCE):
            self._client.log_batch(self.run_id, params=new[start : start + _PARAMS_AT_ONCE])

    def _open(self) -> None:
        client = importlib.import_module("mlflow.tracking").MlflowClient(tracking_uri=self.uri)
        if self.run_id is None:
            found = client.get_experiment_by_name(self.experiment)
            place = found.experiment_id if found else client.create_experiment(self.experiment)
            self.run_id = client.create_run(place).info.run_id
        self._client = client


class Trackio(Tracker):
    """Logs to trackio, which keeps metrics on this machine.

    Args:
        project: Name of the project.
        every: As for `Tracker`.
        **init: For `trackio.init`: `name`, `resume`, ...

    Raises:
        MissingTracker: The extra `trackio` is not installed.
    """

    def __init__(self, project: str, *, every: int = 50, **init: Any) -> None:
        super().__init__(every=every)
        _check_installed("trackio")
        self._init = {"project": project, **init}
        self._run: Any = None

    def describe(self, hyperparameters: Mapping[str, Any]) -> None:
        # Taken with the first metrics; a run of trackio that goes on keeps what it was told.
        self._init["config"] = {**hyperparameters, **(self._init.get("config") or {})}

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._run is None:
            self._run = importlib.import_module("trackio").init(**self._init)
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.finish()


def _check_installed(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise MissingTracker(
            f"The package {package!r} is not installed: pip install "
            f"'statemachine-trainer[{package}]'."
        )
