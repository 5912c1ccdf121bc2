"""Checks of settings. Each error names the owner, the given value, and what to use instead."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection
from typing import NoReturn

from statemachine_trainer.loops.loop_errors import SettingError


def refuse(owner: object, name: str, value: object, use: str) -> NoReturn:
    """Refuse a setting.

    Args:
        owner: The object that has it, or the name of its class.
        name: Its name.
        value: What was given.
        use: What to give instead, as a sentence: "use a whole number from 1."

    Raises:
        SettingError: Always.
    """
    whose = owner if isinstance(owner, str) else type(owner).__name__
    raise SettingError(f"{whose}({name}={value!r}): {use}")


def whole_number(owner: object, name: str, value: object, least: int = 0, hint: str = "") -> int:
    """Return a setting that must be a whole number.

    Raises:
        SettingError: It is not a whole number, or less than `least`.
    """
    if is_whole(value, least):
        return operator.index(value)  # type: ignore[arg-type]
    refuse(owner, name, value, f"use a whole number from {least}.{hint}")


def number(
    owner: object, name: str, value: object, *, positive: bool = True, hint: str = ""
) -> float:
    """Return a setting that must be a number: finite, and positive or at least 0.

    Raises:
        SettingError: It is none.
    """
    found = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if math.isfinite(found) and (found > 0 or (found == 0 and not positive)):
        return found
    refuse(
        owner, name, value, f"use {'a positive number' if positive else 'a number from 0'}.{hint}"
    )


def flags(owner: object, **values: object) -> None:
    """Refuse settings that must be True or False, but are not.

    Raises:
        SettingError: One is.
    """
    for name, value in values.items():
        if not isinstance(value, bool):
            refuse(owner, name, value, "use True or False.")


def text(owner: object, name: str, value: object, what: str) -> str:
    """Return a setting that must be a text, and not an empty one.

    Args:
        owner: Whose it is.
        name: Its name.
        value: What was given.
        what: What it names, such as "a metric".

    Raises:
        SettingError: It is none.
    """
    if isinstance(value, str) and value:
        return value
    refuse(owner, name, value, f"give the name of {what}.")


def one_of(owner: object, name: str, value: object, choices: Collection[str]) -> None:
    """Refuse a setting that is not one of the given names.

    Raises:
        SettingError: It is none.
    """
    if not isinstance(value, str) or value not in choices:
        *others, last = map(repr, choices)
        refuse(owner, name, value, f"use {', '.join(others)} or {last}.")


def function(owner: object, name: str, value: Callable[..., object] | None, what: str) -> None:
    """Refuse a setting that must be a function or None, but is not.

    Args:
        owner: Whose it is.
        name: Its name.
        value: What was given.
        what: What the function is for, such as "that makes a loader of a data set".

    Raises:
        SettingError: It is none.
    """
    if value is not None and not callable(value):
        refuse(owner, name, value, f"give a function {what}.")


def is_whole(value: object, least: int = 0) -> bool:
    """Whether a value is a whole number, of numpy or torch too, and at least so large."""
    return (
        hasattr(value, "__index__")
        and not isinstance(value, bool)
        and operator.index(value) >= least
    )


def is_sequence(value: object) -> bool:
    """Return whether a value is a list, a tensor or an array, but not text."""
    return (
        hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, str)
    )
