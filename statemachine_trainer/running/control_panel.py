"""The control panel of a fit: its settings, changed while it runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from statemachine_trainer.control.processes import asked_by, asking
from statemachine_trainer.loops.base import take_limits
from statemachine_trainer.loops.changeable import (
    Setting,
    Value,
    named,
    note_rate,
    settings_of,
)
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.errors import NotStarted
from statemachine_trainer.running.drivers import context_of

_log = logging.getLogger(__name__)

Change = tuple[Value, Value]

SET: Final = "set"
"""The event that carries settings."""


class ControlPanel:
    """Changes settings of a fit at its boundaries.

    What was changed is a part of the state of the fit, so it holds after a resume.

    Args:
        driver: The driver of the fit.

    Attributes:
        note: Called with what was changed; None if nobody is to be told.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._given: dict[str, Value] = {}  # settings of loops, as the script has set them
        self.note: Callable[[Mapping[str, Any]], None] | None = None

    def settings(self) -> dict[str, Setting]:
        """Return the settings that may be changed, by name; none before the fit was started."""
        context = context_of(self._driver)
        return {} if context is None else settings_of(self._driver.root, context)

    def post(self, values: Mapping[str, object]) -> None:
        """Change settings at the next boundary that can be written down; at this one, if at rest.

        Raises:
            SettingError: There is no such setting, or it cannot have this value. Then none is changed.
            NotStarted: There is no fit, or it has ended.
        """
        context, driver = context_of(self._driver), self._driver
        if not values:
            raise SettingError(
                f"'set' says which settings to change, such as set lr=1e-4. {self._told()}"
            )
        if context is None or (driver.path is None and not driver.running):
            raise NotStarted(
                "No fit is running or paused whose settings could be changed. Set them on its loops."
            )
        if driver.post_to is not None:
            raise SettingError(
                "'set' was posted to one of several ranks, and all have to change at the same step. Stop "
                "the run, and go on with other settings in its script."
            )
        checked, by = self._checked(values, context), asked_by()
        driver.at_boundary(lambda: self._take(checked, by))

    def restore(self, context: Context, changes: Mapping[str, Change]) -> None:
        """Set the settings of the loops as a state of the fit has them.

        A script that gives another value than it gave before has changed its mind: its value holds.

        Args:
            context: The context that gets the state.
            changes: What was changed in it, as in `Context.changes`.
        """
        for name, one in settings_of(self._driver.root, context).items():
            if one.owner is None or (name not in changes and name not in self._given):
                continue
            given = self._given.setdefault(name, one.value)
            value, given_then = changes.get(name, (given, given))
            if given != given_then:
                _log.warning(
                    "%s is %r, as the script gives it now, and not %r, to which it was set while the run went on.",
                    *(name, given, value),
                )
                value = given
            one.put(value)
            if value not in (given, one.value):
                _log.warning(
                    "%s is %r, to which it was set while the run went on. The script gives %r.",
                    *(name, value, given),
                )

    def set_again(self, values: Mapping[str, object]) -> None:
        """Set what was set after the checkpoint that the run goes on from."""
        try:
            with asking("the resumed run"):
                self.post(values)
        except (SettingError, NotStarted) as error:
            _log.warning("What was set after the checkpoint is not set again: %s", error)
            return
        shown = ", ".join(f"{name}={value!r}" for name, value in values.items())
        _log.warning("Set again, as it was set after the checkpoint: %s.", shown)

    # -- parts -----------------------------------------------------------------------------------

    def _told(self) -> str:
        return " ".join(f"{name}: {one.kind.with_unit}." for name, one in self.settings().items())

    def _checked(self, values: Mapping[str, object], context: Context) -> dict[str, Value]:
        settings = self.settings()
        return {
            name: named(settings, name).check(value, context.counts)
            for name, value in values.items()
        }

    def _take(self, values: Mapping[str, Value], by: str) -> None:
        driver, settings = self._driver, self.settings()
        context: Context = driver.context
        changed: dict[str, Any] = {}
        for name, value in values.items():
            one = settings.get(name)
            if one is None or one.refusal:  # loops or optimizers were swapped meanwhile
                _log.warning("%s is not set to %r: it cannot be changed any more.", name, value)
                continue
            if one.owner is None:
                note_rate(context, name, value)
            else:
                change: Change = (value, self._given.setdefault(name, one.value))
                context.changes = {**context.changes, name: change}
            one.put(value)
            changed[name] = {"from": one.value, "to": value}
            if by:  # where a replay sets it again, which nobody asks from outside
                at = {"before": driver.path, "batch": context.counts.batch}
                changed[name] |= {"by": by, **at}
        if driver.path is not None:
            take_limits(driver.root, driver.path, context)
        if changed and self.note is not None:
            self.note(changed)
