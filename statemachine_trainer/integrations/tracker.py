"""What trackers of experiments have in common: they hand on the metrics of a run, and what is no number."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final, NoReturn

from statemachine_trainer.integrations.pictures import array_of_figure
from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.machine.keywords import HasSettings
from statemachine_trainer.observe.readings import Part, values_of_step

_log = logging.getLogger(__name__)
_KEEPERS: Final = {
    "images": "TensorBoard, WandB, MLflow and Trackio",
    "texts": "TensorBoard, WandB, MLflow and Trackio",
    "histograms": "TensorBoard, WandB and Trackio",
    "files": "WandB and MLflow",
}


class MissingTracker(StateMachineError):
    """The package of a tracker is not installed."""


class NotKept(StateMachineError):
    """A tracker has no place for something of this kind."""


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

    # -- what is no number -----------------------------------------------------------------------

    def image(self, step: int, name: str, image: Any) -> None:
        """Keep an image.

        Args:
            step: Optimizer steps done, such as `trainer.steps`.
            name: What it is called, such as "samples".
            image: A tensor of shape (colours, height, width) or (height, width), an array of shape
                (height, width, colours), or an image of PIL: bytes, or fractions from 0 to 1.

        Raises:
            NotKept: This tracker keeps none.
        """
        self._lacks("images")

    def figure(self, step: int, name: str, figure: Any) -> None:
        """Keep a figure of matplotlib, as an image. It is left open.

        Raises:
            NotKept: This tracker keeps none.
        """
        self.image(step, name, array_of_figure(figure))

    def text(self, step: int, name: str, text: str) -> None:
        """Keep a text.

        Raises:
            NotKept: This tracker keeps none.
        """
        self._lacks("texts")

    def histogram(self, step: int, name: str, values: Any) -> None:
        """Keep how numbers are spread: those of a tensor, an array or a list.

        Raises:
            NotKept: This tracker keeps none.
        """
        self._lacks("histograms")

    def artifact(self, path: str | Path, name: str | None = None) -> None:
        """Keep a copy of a file.

        Args:
            path: The file.
            name: What it is called; as the file unless given.

        Raises:
            NotKept: This tracker keeps none.
        """
        self._lacks("files")

    def _lacks(self, what: str) -> NoReturn:
        raise NotKept(
            f"{type(self).__name__} keeps no {what}. {_KEEPERS[what]} do; without a tracker, write a file into "
            "trainer.run_folder."
        )

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
