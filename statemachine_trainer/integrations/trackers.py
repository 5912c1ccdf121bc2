"""Trackers of experiments as callbacks: CSV, TensorBoard, Weights & Biases, MLflow, trackio.

    Trainer(callbacks=[TensorBoard("runs/mine")])

Each is a `Tracker` with a few lines that hand metrics on; one for another service is as short. None
of them is needed for a run to be recorded: see `Trainer(run=...)`.
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from statemachine_trainer.files import check_writable, path_given
from statemachine_trainer.integrations.pictures import array_of_image, array_of_numbers
from statemachine_trainer.integrations.tracker import MissingTracker, NotKept, Tracker
from statemachine_trainer.loops.loop_errors import SettingError

__all__ = [
    "CSV",
    "MLflow",
    "MissingTracker",
    "NotKept",
    "TensorBoard",
    "Tracker",
    "Trackio",
    "WandB",
]

_PARAMS_AT_ONCE: Final = 100
"""Parameters that MLflow takes in one call."""


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
        # A test stands at the last step of the fit, whose points are to stay.
        self._open(step, stays=all(name.startswith("test/") for name in metrics))
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

    def image(self, step: int, name: str, image: Any) -> None:
        self._open(step).add_image(name, array_of_image(image), step, dataformats="HWC")

    def text(self, step: int, name: str, text: str) -> None:
        self._open(step).add_text(name, text, step)

    def histogram(self, step: int, name: str, values: Any) -> None:
        self._open(step).add_histogram(name, array_of_numbers(values), step)

    def _open(self, step: int, *, stays: bool = False) -> Any:
        if self._writer is None:
            module = importlib.import_module("torch.utils.tensorboard")
            purge = None if stays or self._written else step
            self._writer = module.SummaryWriter(str(self.folder), purge_step=purge)
            self._written = True
        return self._writer

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
        self._open()
        given, self._hyperparameters = self._hyperparameters, None
        if given is not None:
            # What the user gave `wandb.init` as `config` stays beside it.
            self._run.config.update(dict(given), allow_val_change=True)
        self._run.log(dict(metrics), step=step)

    def image(self, step: int, name: str, image: Any) -> None:
        wandb = self._open()
        self._run.log({name: wandb.Image(array_of_image(image))}, step=step)

    def text(self, step: int, name: str, text: str) -> None:
        wandb = self._open()
        self._run.log({name: wandb.Table(columns=["text"], data=[[text]])}, step=step)

    def histogram(self, step: int, name: str, values: Any) -> None:
        wandb = self._open()
        self._run.log({name: wandb.Histogram(array_of_numbers(values))}, step=step)

    def artifact(self, path: str | Path, name: str | None = None) -> None:
        self._open()
        file = _file(path)
        self._run.log_artifact(str(file), name=name or file.name, type="file")

    def _open(self) -> Any:
        """Begin the run, unless it has begun, and return the package."""
        wandb = importlib.import_module("wandb")
        if self._run is None:
            self._run = wandb.init(**self._init)
            # What comes after a fit, such as a test, goes on in the same run.
            self._init = {"resume": "allow", **self._init, "id": self._run.id}
        return wandb

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
        self._open()
        metric = importlib.import_module("mlflow.entities").Metric
        self._write_hyperparameters()
        now = int(time.time() * 1000)
        values = [metric(name, value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self.run_id, metrics=values)

    def image(self, step: int, name: str, image: Any) -> None:
        self._open()
        self._client.log_image(self.run_id, array_of_image(image), f"{name}/{step:08d}.png")

    def text(self, step: int, name: str, text: str) -> None:
        self._open()
        self._client.log_text(self.run_id, text, f"{name}/{step:08d}.txt")

    def artifact(self, path: str | Path, name: str | None = None) -> None:
        self._open()
        file = _file(path)
        if name is None or name == file.name:
            self._client.log_artifact(self.run_id, str(file))
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(shutil.copy(file, Path(folder) / Path(name).name))
            place = str(Path(name).parent)
            self._client.log_artifact(self.run_id, str(copy), None if place == "." else place)

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
        if self._client is not None:
            return
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
        self._open()
        self._run.log(dict(metrics), step=step)

    def image(self, step: int, name: str, image: Any) -> None:
        trackio = self._open()
        self._run.log({name: trackio.Image(_with_colours(array_of_image(image)))}, step=step)

    def text(self, step: int, name: str, text: str) -> None:
        trackio = self._open()
        self._run.log({name: trackio.Markdown(text)}, step=step)

    def histogram(self, step: int, name: str, values: Any) -> None:
        trackio = self._open()
        self._run.log({name: trackio.Histogram(array_of_numbers(values))}, step=step)

    def _open(self) -> Any:
        """Begin the run, unless it has begun, and return the package."""
        trackio = importlib.import_module("trackio")
        if self._run is None:
            self._run = trackio.init(**self._init)
        return trackio

    def close(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.finish()


def _with_colours(image: Any) -> Any:
    """Return an image with three colours, or four, which is what trackio takes."""
    return image.repeat(3, axis=2) if image.shape[2] == 1 else image


def _file(path: str | Path) -> Path:
    file = path_given(path)
    if not file.is_file():
        raise SettingError(f"There is no file {str(path)!r} to keep.")
    return file


def _check_installed(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise MissingTracker(
            f"The package {package!r} is not installed: pip install "
            f"'statemachine-trainer[{package}]'."
        )
