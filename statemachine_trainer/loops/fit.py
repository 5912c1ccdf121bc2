"""The fit loop: the sanity check, then epochs, until a limit is reached."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from statemachine_trainer.intervals import Counts
from statemachine_trainer.loops.base import TrainingLoop, in_training
from statemachine_trainer.loops.changeable import Changeable
from statemachine_trainer.loops.context import Limits
from statemachine_trainer.loops.epoch import EpochLoop
from statemachine_trainer.loops.evaluation import SanityLoop
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.mistakes import (
    warn_of_no_validation,
    warn_of_nothing_learned,
    warn_of_posted_too_late,
)
from statemachine_trainer.loops.settings_checks import whole_number
from statemachine_trainer.machine.fields import RUN, field
from statemachine_trainer.machine.loop import Loop, place

MaxTime = str | float | datetime.timedelta | dict[str, float]


class FitLoop(TrainingLoop):
    """Trains up to a number of epochs, steps or batches, or for some time, whichever is reached first.

    None and `math.inf` mean no limit. Settings may be changed between runs, or while the fit is
    paused. They are read when the fit continues and before each epoch. An epoch is one pass through
    the epoch loop: if a fit is stopped within the data and continued later, the rest of the data is
    an epoch of its own.

    Args:
        max_epochs: Largest number of epochs.
        min_epochs: Smallest number of epochs: `stop` and `max_time` wait for it.
        max_steps: Largest number of optimizer steps, exact.
        min_steps: Smallest number of optimizer steps: `stop` and `max_time` wait for it.
        max_batches: Largest number of training batches.
        max_time: Longest time: seconds, a `timedelta`, its keywords as a dict, or "DD:HH:MM:SS".
            Pauses do not count.
        count_steps_of: Which optimizers the two limits on steps count: the "first" one, or "all".
        sanity_batches: Number of validation batches to try before the first epoch; 0 for none, -1
            for all.
        **loops: Loops for `sanity` and `epoch`.

    Raises:
        SettingError: A setting out of its range.
    """

    initial = "fit_start"
    transitions = (
        # event          source        destination
        ["check", "fit_start", "sanity"],
        ["sanity_done", "sanity", "next_epoch"],
        ["fit_started", "fit_start", "next_epoch"],
        ["epoch_due", "next_epoch", "epoch"],
        ["epoch_done", "epoch", "next_epoch"],
        ["epochs_done", "next_epoch", "fit_end"],
        ["stop", "next_epoch", "fit_end", "may_stop"],
        [
            "end_epoch",
            "next_epoch",
            None,
        ],  # posted after the end of an epoch: the next one is a whole epoch
    )
    outcomes = ("fit_done",)
    posted = ("end_epoch",)

    sanity: Loop = place(SanityLoop)
    epoch: Loop = place(EpochLoop)

    checked: bool = field(False, scope=RUN)
    since: dict[str, int | float | None] | None = field(None, scope=RUN)

    def __init__(
        self,
        *,
        max_epochs: float | None = None,
        min_epochs: int = 0,
        max_steps: float | None = None,
        min_steps: int = 0,
        max_batches: float | None = None,
        max_time: MaxTime | None = None,
        count_steps_of: Literal["first", "all"] = "first",
        sanity_batches: int = 2,
        **loops: Any,
    ) -> None:
        super().__init__(**loops)
        self.max_epochs = max_epochs
        self.min_epochs = min_epochs
        self.max_steps = max_steps
        self.min_steps = min_steps
        self.max_batches = max_batches
        self.max_time = max_time
        self.count_steps_of = count_steps_of
        self.sanity_batches = sanity_batches
        if "sanity" not in loops and sanity_batches != 2:
            self.fill("sanity", batches=sanity_batches)
        self.limits()

    @property
    def changeable(self) -> Mapping[str, Changeable]:
        return {
            "max_epochs": Changeable(whole=True, least=1, done="epoch", unit="epochs"),
            "max_steps": Changeable(whole=True, least=1, done="step", unit="optimizer steps"),
        }

    def limits(self) -> Limits:
        limits = self.own_limits()
        if self.since is None:
            return limits
        begun = Counts()
        begun.load_state_dict(self.since)
        return limits.after(begun)

    def own_limits(self) -> Limits:
        """Check the settings and return them as the limits of a fit.

        Raises:
            SettingError: A setting is out of its range.
        """
        if self.count_steps_of not in ("first", "all"):
            raise SettingError(
                f"FitLoop(count_steps_of={self.count_steps_of!r}): use 'first' or 'all'."
            )
        limits = Limits(
            max_epochs=self._most("max_epochs"),
            min_epochs=whole_number(self, "min_epochs", self.min_epochs),
            max_steps=self._most("max_steps"),
            min_steps=whole_number(self, "min_steps", self.min_steps),
            max_batches=self._most("max_batches"),
            max_seconds=None if self.max_time is None else parse_time(self.max_time),
            every_optimizer=self.count_steps_of == "all",
        )
        return limits

    def never_ends(self) -> bool:
        set_by_someone = (self.max_epochs, self.max_steps, self.max_batches, self.max_time)
        return all(limit is None for limit in set_by_someone)

    def count_from(self, counts: Counts) -> None:
        self.since = counts.state_dict()

    def fit_start(self) -> Literal["check", "fit_started"]:
        """Put the model into training mode; run the sanity check before the first fit of a model.

        If the model itself is already in training mode, nothing changes, so parts that were put
        into evaluation mode (frozen ones, for example) stay in it.
        """
        context = self.context
        context.limits = self.limits()
        context.finished = context.stopping = context.flushing = False
        if not context.model.training:
            context.model.train()
        first, self.checked = not self.checked and not context.counts.batch, True
        wanted = first and context.validation and not in_training(self.sanity).has_no_work
        return "check" if wanted else "fit_started"

    def next_epoch(self) -> Literal["epoch_due", "epochs_done"]:
        """Decide whether there is another epoch."""
        context = self.context
        context.limits = self.limits()
        before = 0 if self.since is None else self.since["epoch"]
        if before is not None and context.counts.epoch == before + 1:
            warn_of_nothing_learned(context, self)
        if context.stopping and context.may_stop:
            return "epochs_done"
        return "epoch_due" if context.limit_reached is None else "epochs_done"

    def fit_end(self) -> Literal["fit_done"]:
        """End the fit. Its results are in the context."""
        if len([*self.outwards()]) == 1:  # if there are several fits, a later one may validate
            warn_of_no_validation(self.context, self.epoch)
            warn_of_posted_too_late(self.context)
        return "fit_done"

    def may_stop(self) -> bool:
        """Guard of `stop`: `min_epochs` and `min_steps` are reached."""
        return self.context.may_stop

    # -- parts -----------------------------------------------------------------------------------

    def _most(self, name: str) -> int | None:
        value = getattr(self, name)
        if value is None or value == math.inf:
            return None
        return whole_number(self, name, value, hint=" For no limit leave it out.")


def parse_time(value: MaxTime) -> float:
    """Convert a length of time to seconds.

    Raises:
        SettingError: It is not a number, `timedelta`, dict of its keywords, or text "DD:HH:MM:SS".
    """
    try:
        seconds = _seconds(value)
    except (TypeError, ValueError) as error:
        reason = str(error)
    else:
        if seconds > 0:
            return seconds
        reason = "it must be positive"
    raise SettingError(
        f"max_time={value!r}: {reason}. Use seconds, a timedelta, a dict of its keywords, or "
        "'DD:HH:MM:SS'."
    )


def _seconds(value: MaxTime) -> float:
    if isinstance(value, bool):
        raise TypeError("a bool is no time")
    if isinstance(value, str):
        match = re.fullmatch(r"(?:(\d+):)?(\d+):(\d+):(\d+(?:\.\d+)?)", value.strip())
        if match is None:
            raise ValueError("a text is of the form DD:HH:MM:SS")
        days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if isinstance(value, dict):
        value = datetime.timedelta(**value)
    return value.total_seconds() if isinstance(value, datetime.timedelta) else float(value)
