"""The limits of a fit: taken over from its loops, and refused where it would never end, or not begin."""

from __future__ import annotations

from typing import Any, Final

from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.errors import NothingToDo, SettingError
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.loop import SEPARATOR, Loop

_LIMITS: Final = ("max_epochs", "max_steps", "max_batches", "max_time")


def loops_around_state(driver: Driver) -> list[Any]:
    """Return the loops that a machine stands in, outermost first; the root alone where it has ended."""
    found = [driver.root]
    names = (driver.path or "").split(SEPARATOR)[1:-1]
    for name in names:
        found.append(found[-1].loops_inside()[name])
    return found


def take_limits(driver: Driver, context: Context) -> None:
    """Take over the limits of the innermost fit that a machine stands in.

    They may have been set anew while the run was paused.
    """
    for loop in reversed(loops_around_state(driver)):
        if hasattr(loop, "limits"):
            context.limits = loop.limits()
            return


def refuse_endless(root: Loop) -> None:
    """Refuse a fit that nothing would ever end.

    Raises:
        SettingError: A loop of the tree has limits, and none of them is set.
    """
    endless = (
        all(hasattr(loop, name) and getattr(loop, name) is None for name in _LIMITS)
        for _, loop in root.walk()
    )
    if any(endless):
        raise SettingError(
            f"The fit would never end: set one of {', '.join(_LIMITS)}. For a run that only `stop` ends, say "
            "max_epochs=math.inf."
        )


def refuse_to_do_nothing(root: Any, context: Context) -> None:
    """Refuse a fit whose limits are reached before it begins.

    Args:
        root: The loop of the fit, whose limits are taken over, if it has any.
        context: The context of the fit, with its counters.

    Raises:
        NothingToDo: They are.
    """
    if hasattr(root, "limits"):
        context.limits = root.limits()
    name, counts = context.limit_reached, context.counts
    if name is not None:
        raise NothingToDo(
            f"This fit would do nothing: {name}={getattr(root, name, None)!r} is reached, with {counts.epoch} "
            f"epochs, {counts.step} steps and {counts.batch} batches done. Raise `trainer.loop.{name}` to go on, "
            "or begin anew with `fit(..., restart=True)`."
        )
