"""Evaluations by themselves, or beside a paused fit: `validate`, `test` and `predict`."""

from __future__ import annotations

from typing import Any

from torch import nn

from statemachine_trainer.loops.assembly import Equipment, assemble_evaluation
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.evaluation import abandon_loops, undisturbed
from statemachine_trainer.loops.guest import Guest
from statemachine_trainer.loops.model import Loss
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.running.drivers import Drivers, context_of
from statemachine_trainer.running.given import check_loss
from statemachine_trainer.running.host import Host
from statemachine_trainer.running.runner import Runner


class Evaluator:
    """Evaluates models for one trainer, and leaves no trace in a fit that is paused meanwhile.

    Args:
        host: The trainer.
        drivers: Its drivers.
        equipment: Where and how precisely it computes.
        runner: Runs the active one.
    """

    def __init__(self, host: Host, drivers: Drivers, equipment: Equipment, runner: Runner) -> None:
        self._host = host
        self._drivers = drivers
        self._equipment = equipment
        self._runner = runner

    def measure(
        self, name: str, step: str, model: nn.Module | None, data: Any, loss: Loss | None
    ) -> dict[str, float]:
        """Run the loop of "validate" or "test" to its end and return the metrics.

        Args:
            name: The name of the loop.
            step: The step of the model that it calls.
            model: The model; None for that of what ran last.
            data: One loader or several.
            loss: For a plain model.

        Raises:
            NotStarted: There is no model.
            AlreadyRunning: An evaluation of this name is running.
            NothingToDo: There are no data.
        """
        return self._evaluate(name, step, model, data, loss).read_metrics()

    def predict(self, model: nn.Module | None, data: Any) -> list[Any]:
        """Run the loop of "predict" to its end and return the answers; see `measure`.

        Returns:
            The answers by batch; with several loaders a list of such lists.
        """
        self._evaluate("predict", "predict_step", model, data, None)
        predictions: list[Any] = getattr(self._drivers["predict"].root, "predictions", [])
        return predictions[0] if len(predictions) == 1 else predictions

    def _evaluate(
        self, name: str, step: str, model: nn.Module | None, data: Any, loss: Loss | None
    ) -> Context:
        driver, before = self._drivers[name], self._drivers.active
        if model is None:
            model = self._drivers.context.model
        check_loss(loss)
        driver.check_at_rest("start")
        paused = context_of(before) if before.path is not None else None
        context = self._assemble(driver, step, model, data, loss)
        self._drivers.active = driver
        try:
            with undisturbed(paused):
                self._runner.evaluate()
            return context
        except BaseException:
            if paused is not None:
                abandon_loops(driver.root)
                self._drivers.active = before
            raise
        finally:
            if paused is not None and driver.path is None:
                self._drivers.active = before

    def _assemble(
        self, driver: Driver, step: str, model: nn.Module, data: Any, loss: Loss | None
    ) -> Context:
        """Let the loops of an evaluation work on a context of its own."""
        abandon_loops(driver.root)
        context = assemble_evaluation(self._equipment, self._host, model, data, step, loss)
        if isinstance(model, Guest):
            model.subscribe(self._host)
        driver.share(context)
        return context
