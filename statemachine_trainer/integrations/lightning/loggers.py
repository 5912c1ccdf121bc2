"""Hands what was logged on to Lightning's loggers, when and with the steps that Lightning does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch

from statemachine_trainer.integrations.lightning.calls import HookCalls
from statemachine_trainer.integrations.lightning.results import Results, as_tensors
from statemachine_trainer.integrations.lightning.standing import Standing


class LoggerConnector:
    """Writes metrics to loggers: those of a step at every so many steps, those of a pass at its end.

    Args:
        standing: Where the run stands.
        calls: Knows module and data module, whose hyper-parameters are logged.
        results: What `self.log` wrote.
        loggers: Loggers of Lightning.
        every: Steps from one writing of steps to the next; 0 for never.

    Attributes:
        logged: The newest value of everything that was handed on.
    """

    _current_fx: str | None = None

    def __init__(
        self,
        standing: Standing,
        calls: HookCalls,
        results: Results,
        loggers: Sequence[Any],
        every: int,
    ) -> None:
        self._standing = standing
        self._calls = calls
        self.results = results
        self.loggers = list(loggers)
        self.every = every
        self.logged: dict[str, Any] = {}
        self._has_resumed = False

    def note_resume(self) -> None:
        """Note that the run goes on from a checkpoint: what was written after it is written again."""
        self._has_resumed = True

    # -- what callbacks and modules ask ----------------------------------------------------------

    def should_reset_tensors(self, fx: str) -> bool:
        """Tell that nothing is to be reset: a pass begins with an empty table."""
        return False

    @property
    def should_update_logs(self) -> bool:
        """Whether metrics of steps are written after this batch: also after each once a stop is asked for."""
        if self.every <= 0:
            return False
        turn = (self._standing.batches_stepped + 1) % self.every == 0
        return turn or bool(self._calls.trainer.should_stop)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Hand metrics on to every logger.

        Args:
            metrics: By name.
            step: As in Lightning, batches after which an optimizer stepped, unless told.
        """
        if not metrics:
            return
        self.logged.update(metrics)
        if not self.loggers:
            return
        scalars = {name: _number(value) for name, value in metrics.items()}
        if step is None:
            step = int(scalars.pop("step", -1))
        if step < 0:
            scalars.setdefault("epoch", self._standing.fitting.counts.epoch)
            step = self._standing.batches_stepped
        if self._has_resumed:
            self._has_resumed = False
            self._outdate_what_was_written()
        for logger in self.loggers:
            logger.log_metrics(metrics=scalars, step=step)
            logger.save()

    # -- when ------------------------------------------------------------------------------------

    def log_hyperparameters(self) -> None:
        """Hand hyper-parameters of module and data module on to the loggers, as Lightning does."""
        if not self.loggers:
            return
        things = (self._calls.module, self._calls.datamodule)
        known: dict[str, Any] = {}
        for thing in things:
            if thing is not None and getattr(thing, "_log_hyperparams", False):
                known.update(thing.hparams_initial)
        for logger in self.loggers:
            if known:
                logger.log_hyperparams(known)
            logger.log_graph(self._calls.module)
            logger.save()

    def batch_ended(self) -> None:
        """Write what the training step logged with `on_step`."""
        standing = self._standing
        if not self.loggers or not standing.may_step or not self.should_update_logs:
            return
        newest = standing.context.train_metrics.newest("on_step")
        self.log_metrics(self._visible(newest))

    def epoch_ended(self) -> None:
        """Write what was logged with `on_epoch` in the epoch, at the step of its last batch."""
        if not self.loggers:
            return
        table, step = self._standing.context.train_metrics, self._standing.batches_stepped
        self._log_pass(table.compute(), max(step - 1, 0))

    def evaluation_batch_ended(self, kind: str) -> None:
        """Write what the step logged with `on_step`, at the number of the batch of its loader."""
        steps, self.results.steps = dict(self.results.steps), {}
        if steps and not self._standing.sanity_checking:
            self.log_metrics(
                self._visible(steps), step=self._standing.evaluated_of_loader(kind) - 1
            )

    def evaluation_ended(self) -> None:
        """Write the metrics of a validation or test, at the step of the last training batch."""
        if (
            self.loggers
            and not self._standing.sanity_checking
            and self._standing.stage != "predict"
        ):
            table = self._standing.context.validation_metrics
            self._log_pass(table.compute(), self._standing.batches_stepped)

    def finish(self, status: str) -> None:
        """Let the loggers write what waits.

        Args:
            status: "success" or "failed".
        """
        for logger in self.loggers:
            logger.finalize(status)

    def _outdate_what_was_written(self) -> None:
        """Tell TensorBoard that what a folder holds from this step on is outdated, as `purge_step` does."""
        kind = self._calls.library.get("loggers:TensorBoardLogger")
        for logger in self.loggers:
            writer = logger.experiment if isinstance(logger, kind) else None
            if writer is not None and hasattr(writer, "_get_file_writer"):  # that of torch
                events = import_module("tensorboard.compat.proto.event_pb2")
                begun = events.SessionLog(status=events.SessionLog.START)
                writer._get_file_writer().add_event(
                    events.Event(session_log=begun), self._standing.batches_stepped
                )

    def _log_pass(self, values: Mapping[str, float], step: int) -> None:
        epochs = self.results.epochs
        names = {name: epochs[name] for name in values if name in epochs}
        found = {label: values[name] for name, label in names.items()}
        shown = self._visible(found)
        if shown:
            self.log_metrics({"epoch": self._standing.fitting.counts.epoch, **shown}, step=step)

    def _visible(self, values: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        hidden = self.results.hidden
        return as_tensors(
            {k: float(v) for k, v in values.items() if k not in hidden and v is not None}
        )


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
