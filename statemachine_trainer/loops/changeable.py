"""Settings that may be changed while a fit runs: which there are, what they may be, and how they are set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.optim import lr_scheduler

from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.machine.errors import suggest

if TYPE_CHECKING:
    from statemachine_trainer.intervals import Counts
    from statemachine_trainer.loops.context import Context
    from statemachine_trainer.loops.slots import OptimizerSlot
    from statemachine_trainer.machine.loop import Loop

Value = int | float | None


@dataclass(frozen=True)
class Changeable:
    """What a setting may be. As text it says so.

    Attributes:
        whole: Only whole numbers.
        least: The smallest value.
        above: Whether it must be larger than that.
        none: Whether it may be None, for none.
        done: The counter that it has to be larger than, such as "step".
        unit: What it counts, or what it is a number of; "" if nobody has said.
    """

    whole: bool = False
    least: float = 0.0
    above: bool = False
    none: bool = False
    done: str = ""
    unit: str = ""

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        text = f"{kind} {'above' if self.above else 'from'} {self.least:g}"
        return f"{text}, or None" if self.none else text

    @property
    def with_unit(self) -> str:
        """What it may be, and its unit."""
        return f"{self} ({self.unit})" if self.unit else str(self)

    def check(self, name: str, value: object) -> Value:
        """Return a value as it is set.

        Raises:
            SettingError: It is none that the setting may be.
        """
        if value is None and self.none:
            return None
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not self.least <= value <= _LARGEST  # nor NaN
            or (self.above and value == self.least)
            or (self.whole and value != int(value))
        ):
            raise SettingError(f"set {name}={value!r}: it is {self}.")
        return int(value) if self.whole else float(value)


_LARGEST: Final = 2**53
_OF_GROUPS: Final = {
    "lr": Changeable(unit="times the update"),
    "weight_decay": Changeable(unit="times the weight"),
}

_SCALED: Final = (
    lr_scheduler.LambdaLR,
    lr_scheduler.MultiplicativeLR,
    lr_scheduler.StepLR,
    lr_scheduler.MultiStepLR,
    lr_scheduler.ExponentialLR,
    lr_scheduler.ConstantLR,
    lr_scheduler.LinearLR,
    lr_scheduler.PolynomialLR,
)
"""Schedulers whose rates are multiples of the first one: with another first one they go on from another rate."""


@dataclass(frozen=True)
class Setting:
    """A setting of a fit that may be changed.

    Attributes:
        name: Its name.
        kind: What it may be.
        value: What it is.
        put: Sets it.
        owner: The loop that has it; None if it is one of an optimizer.
        refusal: Why it cannot be changed now; "" if it can.
    """

    name: str
    kind: Changeable
    value: Value
    put: Callable[[Value], None]
    owner: Loop | None = None
    refusal: str = ""

    def check(self, value: object, counts: Counts) -> Value:
        """Return a value as it is set.

        Raises:
            SettingError: It cannot be set to that now.
        """
        if self.refusal:
            raise SettingError(f"set {self.name}={value!r}: {self.refusal}")
        found = self.kind.check(self.name, value)
        done = self._done(counts)
        if self.kind.done and found is not None and found <= done:
            raise SettingError(
                f"set {self.name}={value!r}: {done} are done already. To end the fit, post 'stop'."
            )
        return found

    def _done(self, counts: Counts) -> int:
        """Return how much is done of what the setting counts, in this fit."""
        if not self.kind.done:
            return 0
        begun = getattr(self.owner, "since", None) or {}
        return int(getattr(counts, self.kind.done) - begun.get(self.kind.done, 0))


def settings_of(root: Loop, context: Context) -> dict[str, Setting]:
    """Return the settings of a fit that may be changed, by name."""
    found: dict[str, Setting] = {}
    for path, loop in root.walk("fit"):
        for name, kind in getattr(loop, "changeable", {}).items():
            value = getattr(loop, name)
            several = "" if name not in found else f"Several loops have it; {path} is one of them."
            put = _putting(loop, name)
            found[name] = Setting(name, kind, value, put, loop, several)
    return found | {one.name: one for one in _of_optimizers(context)}


def named(settings: Mapping[str, Setting], name: str) -> Setting:
    """Return a setting.

    Raises:
        SettingError: There is none of this name.
    """
    if name not in settings:
        raise SettingError(
            f"There is no setting {name!r} that may be changed while the fit runs. {suggest(name, settings)}"
        )
    return settings[name]


def _putting(loop: Loop, name: str) -> Callable[[Value], None]:
    return lambda value: setattr(loop, name, value)


def note_rate(context: Context, name: str, value: Value) -> None:
    """Note a change of a setting of an optimizer, with its number."""
    context.rates = {**context.rates, name: (value, changes_of_rates(context) + 1)}


def changes_of_rates(context: Context) -> int:
    """Return the number of the last change of a setting of an optimizer; 0 if there was none."""
    return max((number for _, number in context.rates.values()), default=0)


def put_rates_since(context: Context, changes: int) -> None:
    """Set the settings of optimizers again that were changed after so many changes: these have been put back."""
    settings = {one.name: one for one in _of_optimizers(context)}
    for name, (value, number) in context.rates.items():
        if number > changes and name in settings:
            settings[name].put(value)


# -- optimizers ------------------------------------------------------------------------------------


def _of_optimizers(context: Context) -> Iterator[Setting]:
    for name, kind in _OF_GROUPS.items():
        places = [
            (number, place, slot, group)
            for number, slot in enumerate(context.slots)
            for place, group in enumerate(slot.optimizer.param_groups)
            if name in group
        ]
        for number, place, slot, group in places:
            called = name if len(places) == 1 else f"{name}/{number}/{place}"
            value = float(group[name])
            refusal = _why_not(slot, value) if name == "lr" else ""
            put = _put_rate(slot, place) if name == "lr" else _put(group, name)
            yield Setting(called, kind, value, put, refusal=refusal)


def _why_not(slot: OptimizerSlot, rate: float) -> str:
    """Return why the rate of an optimizer cannot be set; "" if it can."""
    for one in slot.schedulers:
        kind = type(one.scheduler)
        if kind is not lr_scheduler.ReduceLROnPlateau and kind not in _SCALED:
            return f"the scheduler {kind.__name__} sets it at each of its steps."
        if kind in _SCALED and not rate:
            return f"the scheduler {kind.__name__} multiplies it, and it is 0 now."
    return ""


def _put(group: dict[str, Any], name: str) -> Callable[[Value], None]:
    def put(value: Value) -> None:
        if isinstance(group[name], torch.Tensor):  # others hold the same one
            group[name].fill_(value)
        else:
            group[name] = value

    return put


def _put_rate(slot: OptimizerSlot, place: int) -> Callable[[Value], None]:
    """Return what sets the rate of a group: schedulers go on from there, by the same factors."""

    def put(value: Value) -> None:
        group = slot.optimizer.param_groups[place]
        before = float(group["lr"])
        _put(group, "lr")(value)
        scaled = [one.scheduler for one in slot.schedulers if type(one.scheduler) in _SCALED]
        if not scaled or not before or value is None:
            return
        factor = value / before
        if "initial_lr" in group:
            group["initial_lr"] = group["initial_lr"] * factor
        for one in scaled:
            one.base_lrs[place] = one.base_lrs[place] * factor

    return put
