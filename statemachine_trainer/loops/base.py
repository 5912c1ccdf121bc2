"""The base class of the loops of training, and checks of their settings."""

from __future__ import annotations

import operator

from statemachine_trainer.data import limit_batches
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.machine.loop import Loop


class TrainingLoop(Loop):
    """A loop that shares a training `Context` with the other loops of its machine."""

    context: Context

    @property
    def counts_samples(self) -> bool:
        """Whether a setting of the loop needs samples to be counted, which takes time."""
        return False


def whole_number(loop: Loop, name: str, value: object, least: int = 0, hint: str = "") -> int:
    """Return a setting of a loop that must be a whole number.

    Raises:
        SettingError: It is none, or less than `least`.
    """
    if hasattr(value, "__index__") and not isinstance(value, bool):
        number = operator.index(value)
        if number >= least:
            return number
    raise SettingError(
        f"{type(loop).__name__}({name}={value!r}): use a whole number from {least}.{hint}"
    )


def check_limit(limit: float | None, name: str) -> int | None:
    """Check a limit on batches before the number of batches is known; return a number for many.

    Raises:
        BadLimit: It makes no sense for any number of batches.
    """
    return limit_batches(limit, 1_000_000_000, name)
