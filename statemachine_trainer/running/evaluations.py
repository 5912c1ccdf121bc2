"""Evaluates models and predicts with them, also while a fit is paused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from statemachine_trainer.loops.assembly import Equipment, assemble_evaluation
from statemachine_trainer.loops.base import abandon_loops
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.evaluation import undisturbed
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.plain import NOTHING_GIVEN, PlainParts
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.running.arguments import check_loss
from statemachine_trainer.running.drivers import Drivers, context_of
from statemachine_trainer.running.fit_state import Host
from statemachine_trainer.running.predictions import Predictions, PredictionWriter
from statemachine_trainer.running.quick_checks import QuickChecks
from statemachine_trainer.running.subscribing import subscribe
from statemachine_trainer.running.surroundings import Surroundings
from statemachine_trainer.running.weights import Checkpoint, weights_of


class Evaluations:
    """Runs the loops of one trainer that evaluate. A paused fit is not changed.

    Args:
        host: The trainer.
        drivers: Its drivers.
        equipment: Its device, precision and seed.
        quick: What quick checks change.
        surroundings: What surrounds each run.
    """

    def __init__(
        self,
        host: Host,
        drivers: Drivers,
        equipment: Equipment,
        quick: QuickChecks,
        surroundings: Surroundings,
    ) -> None:
        self._host = host
        self._drivers = drivers
        self._equipment = equipment
        self._quick = quick
        self._surroundings = surroundings

    def measure(
        self,
        name: str,
        step: str,
        model: nn.Module | None,
        data: Any,
        parts: PlainParts,
        checkpoint: Checkpoint | None = None,
    ) -> dict[str, float]:
        """Run the loop of "validate" or "test" to its end and return the metrics.

        Args:
            name: The name of the loop.
            step: The step of the model that it calls.
            model: The model; None for that of the last run.
            data: One loader or several.
            parts: What a plain model is given: its loss and metrics.
            checkpoint: Evaluate with the weights of this checkpoint.

        Raises:
            NotStarted: There is no model.
            AlreadyRunning: An evaluation of this name is running.
            NothingToDo: There are no data.
        """
        return self._evaluate(name, step, model, data, parts, checkpoint).read_metrics()

    def predict(
        self,
        model: nn.Module | None,
        data: Any,
        checkpoint: Checkpoint | None = None,
        to: str | Path | None = None,
    ) -> Any:
        """Run the loop of "predict" to its end and return the predictions; see `measure`.

        Returns:
            The predictions by batch; with several loaders a list of such lists. `Predictions` if a folder was named.
        """
        if to is not None:
            return self._predict_into(to, model, data, checkpoint)
        self._evaluate("predict", "predict_step", model, data, NOTHING_GIVEN, checkpoint)
        predictions: list[Any] = getattr(self._drivers["predict"].root, "predictions", [])
        return predictions[0] if len(predictions) == 1 else predictions

    def _predict_into(
        self, folder: str | Path, model: nn.Module | None, data: Any, checkpoint: Checkpoint | None
    ) -> Predictions:
        """Predict, and hand each prediction to a file instead of keeping it."""
        driver = self._drivers["predict"]
        writer = PredictionWriter(folder)
        root: Any = driver.root
        kept = getattr(root, "keep", None)
        writing = subscribe(self._host.board, "predict_step:exit", writer.add)
        if kept is not None:
            root.keep = False
        try:
            context = self._evaluate(
                "predict", "predict_step", model, data, NOTHING_GIVEN, checkpoint
            )
        finally:
            writing.cancel()
            if kept is not None:
                root.keep = kept
        if driver.path is not None:
            raise SettingError(
                f"predict(to={str(folder)!r}) was paused. Predictions are written in one go: leave out the pause."
            )
        return writer.finish([name for name, _ in context.validation])

    def _evaluate(
        self,
        name: str,
        step: str,
        model: nn.Module | None,
        data: Any,
        parts: PlainParts,
        checkpoint: Checkpoint | None,
    ) -> Context:
        """Evaluate a model. A paused fit and its checkpoints are not changed."""
        driver, before = self._drivers[name], self._drivers.active
        checkpoint = self._quick.checkpoint(checkpoint)
        if self._quick.dev_batches:
            self._quick.shorten(driver.root)
        model = self._drivers.context.model if model is None else model
        check_loss(parts.loss)
        driver.check_at_rest("start")
        paused = context_of(before) if before.path is not None else None
        context = self._assemble_evaluation(driver, step, model, data, parts)
        context.of_checkpoint = checkpoint is not None
        self._drivers.active = driver
        try:
            with (
                undisturbed(paused),
                weights_of(context.model, checkpoint, self._host.checkpoints),
                self._surroundings.of_run(driver),
            ):
                driver.start()
                driver.run()
                if checkpoint is not None and driver.path is not None:
                    raise SettingError(
                        f"{name}(checkpoint={checkpoint!r}) was paused. The weights of a checkpoint are in the "
                        "model for one evaluation as a whole: load_weights(model, ...) loads them for good."
                    )
            return context
        except BaseException:
            if checkpoint is not None:
                abandon_loops(driver.root)  # nothing to go on with: the model has its own weights
                driver.share(None)
            if paused is not None:
                abandon_loops(driver.root)
                self._drivers.active = before
            raise
        finally:
            if paused is not None and driver.path is None:
                self._drivers.active = before

    def _assemble_evaluation(
        self, driver: Driver, step: str, model: nn.Module, data: Any, parts: PlainParts
    ) -> Context:
        """Give the loops of an evaluation a new context."""
        abandon_loops(driver.root)
        context = assemble_evaluation(self._equipment, self._host, model, data, step, parts)
        context.steps.subscribe(self._host)
        driver.share(context)
        return context
