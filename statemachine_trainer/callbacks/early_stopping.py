"""Ending a fit early, when a metric has stopped getting better."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

from statemachine_trainer.loops import foreign_names
from statemachine_trainer.loops.loop_errors import LikelyMistake, MissingMetric
from statemachine_trainer.loops.metrics.named import near_metric
from statemachine_trainer.loops.settings_checks import flags, number, one_of, text, whole_number
from statemachine_trainer.machine.errors import level_of_caller
from statemachine_trainer.machine.keywords import HasSettings
from statemachine_trainer.machine.signals import Moment

_ROOT: Final = "fit"


class NeverLooked(LikelyMistake):
    """A fit has ended in which early stopping had nothing to look at."""


class EarlyStopping(HasSettings):
    """Posts `stop` when a metric has not improved for some time.

    The fit ends as the graph says: with the epoch, and not before `min_epochs` and `min_steps`. A
    value is looked at once: at the end of an epoch without validation nothing happens.

    Example:
        >>> stopping = EarlyStopping("val_loss", patience=3)
        >>> stopping.monitor, stopping.mode
        ('val_loss', 'min')

    Args:
        monitor: Name of the metric, as it was logged.
        patience: So many looks in a row without an improvement end the fit; at least 1.
        min_delta: By how much a value must be better than the best one to count as an improvement.
        mode: "min" if smaller is better, "max" if larger is.
        check: When to look: at "epoch_end" or at "validation_end".
        check_finite: End the fit at once when the metric is NaN or infinite; else NaN is no
            improvement, and an infinite value is what it is.

    Attributes:
        best: The best value so far; None before the first look.
        best_epoch: Number of the epoch (from 0) in which it was seen; texts such as `reason` count from 1.
        waited: Looks since then.
        reason: Why it asked the fit to stop, in words; None while it has not.

    Raises:
        SettingError: A setting out of its range.
    """

    other_names: ClassVar = foreign_names.EARLY_STOPPING

    def __init__(
        self,
        monitor: str,
        *,
        patience: int = 3,
        min_delta: float = 0.0,
        mode: Literal["min", "max"] = "min",
        check: Literal["epoch_end", "validation_end"] = "epoch_end",
        check_finite: bool = True,
    ) -> None:
        text(self, "monitor", monitor, "a metric to monitor")
        whole_number(self, "patience", patience, 1)
        number(self, "min_delta", min_delta, positive=False)
        one_of(self, "mode", mode, ("min", "max"))
        one_of(self, "check", check, ("epoch_end", "validation_end"))
        flags(self, check_finite=check_finite)
        self.monitor = monitor
        self.patience = patience
        self.min_delta = min_delta
        self.mode = mode
        self.check = check
        self.check_finite = check_finite
        self.reset()
        # The one method `on_<state>` that it has: a loop tree without the other state is fine.
        setattr(self, f"on_{check}", self.look)

    def __repr__(self) -> str:
        best = "" if self.best is None else f", best={self.best:.6g}{self._when()}"
        return (
            f"EarlyStopping({self.monitor!r}, patience={self.patience}, waited={self.waited}{best})"
        )

    def reset(self) -> None:
        """Forget everything, as at the beginning of a new run (or of a new fold)."""
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.waited = 0
        self.reason: str | None = None
        self._no_number = False
        self._looked_at: tuple[int, ...] | None = None

    def on_fit(self, trainer: Any) -> None:
        """Begin anew with a new run.

        A fit that ended otherwise, or that has more patience now, goes on waiting where it stood. One
        that this has ended begins with full patience.
        """
        if trainer.context.counts.batch == 0:
            self.reset()
        if self.asks_to_stop:
            self.waited = 0
        self.reason, self._no_number = None, False

    @property
    def asks_to_stop(self) -> bool:
        """Whether it has asked the fit to stop, and with the present patience would again."""
        return self.reason is not None and (self._no_number or self.waited >= self.patience)

    def on_exit_fit(self, trainer: Any, moment: Moment) -> None:
        """Warn of a fit in which there was nothing to look at."""
        looked = self.best is not None or self.waited or self.reason is not None
        if moment.path == _ROOT and trainer.context.counts.epoch and not looked:
            warnings.warn(
                f"{type(self).__name__} has never looked at {self.monitor!r}: in this fit there was no "
                f"{self.check!r} at which it was new. Give fit validation data, or validate more "
                "often.",
                NeverLooked,
                stacklevel=level_of_caller(),
            )

    def look(self, trainer: Any, moment: Moment) -> None:
        """Look at the metric, and post `stop` if it is time.

        Raises:
            MissingMetric: It was never logged.
        """
        if moment.path.partition(".")[0] != _ROOT:
            return  # an evaluation by itself, which is no part of a training
        value = self._new_value(trainer.context, trainer.metrics)
        if value is None:
            return
        if self.check_finite and not math.isfinite(value):
            self._no_number = True
            self._stop(trainer, f"{self.monitor} is {value}")
        elif self._improves(value):
            self.best, self.best_epoch, self.waited = value, trainer.context.counts.epoch, 0
        else:
            self.waited += 1
            if self.waited >= self.patience:
                self._stop(trainer, self._why())

    def state_dict(self) -> dict[str, Any]:
        """Return what it has seen so far, as plain data."""
        return {
            "best": self.best,
            "best_epoch": self.best_epoch,
            "waited": self.waited,
            "reason": self.reason,
            "no_number": self._no_number,
            "looked_at": self._looked_at,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.best = state["best"]
        self.best_epoch = state["best_epoch"]
        self.waited = state["waited"]
        self.reason = state["reason"]
        self._no_number = state.get("no_number", False)
        looked_at = state["looked_at"]
        self._looked_at = None if looked_at is None else tuple(looked_at)

    def _new_value(self, context: Any, known: Mapping[str, float]) -> float | None:
        """Return the value of the metric; None if it was looked at before, or is still to come."""
        measured = context.measured_at(self.monitor)
        if measured is None:
            if self.check == "epoch_end" and context.awaits_validation:
                return None
            raise MissingMetric(
                f"{type(self).__name__} monitors {self.monitor!r}, which was not logged up to "
                f"{self.check!r}. {near_metric(self.monitor, known, validated=bool(context.validation))}"
            )
        # Earlier versions noted batches and steps alone.
        if self._looked_at in (measured, measured[1:]):
            return None
        self._looked_at = measured
        return known[self.monitor]

    def _improves(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if self.best is None:
            return True
        gain = self.best - value if self.mode == "min" else value - self.best
        return gain > self.min_delta

    def _when(self) -> str:
        return "" if self.best_epoch is None else f" in epoch {self.best_epoch + 1}"

    def _why(self) -> str:
        looks = "look" if self.waited == 1 else "looks"
        best = "no number" if self.best is None else f"{self.best:.6g}{self._when()}"
        return f"{self.monitor} has not improved for {self.waited} {looks}; its best was {best}"

    def _stop(self, trainer: Any, reason: str) -> None:
        if self.reason is None:
            self.reason = reason
        trainer.stop()
