"""What a trainer is given to listen and to write: refused at once where it would do nothing."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

from statemachine_trainer.callbacks.checkpoints import Checkpoints
from statemachine_trainer.loops.errors import SettingError
from statemachine_trainer.machine.errors import BadReceiver


def callbacks_given(given: Any) -> list[object]:
    """Return the callbacks that `Trainer(callbacks=...)` means; None is none.

    Raises:
        SettingError: It is no list.
        BadReceiver: One of them is a class, a name, or there twice; or it has only one of the
            methods `state_dict` and `load_state_dict`.
    """
    if given is None:
        return []
    if isinstance(given, type):
        check_made(given)
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise SettingError(f"callbacks={given!r} is no list. Give callbacks=[...], also for one.")
    callbacks = list(given)
    for place, one in enumerate(callbacks):
        check_made(one)
        if any(one is other for other in callbacks[:place]):
            raise BadReceiver(
                f"The same {type(one).__name__} is in `callbacks` twice, and would be told all things "
                "twice. Give it once, or make another one."
            )
        _check_state(one)
        if isinstance(one, str):
            raise BadReceiver(
                f"The callback {one!r} is a name. Callbacks are objects with on_<state> methods; a "
                "function is subscribed by trainer.on(name, function)."
            )
    return callbacks


def _check_state(callback: object) -> None:
    """Refuse a callback that has half of what it takes to be written down."""
    pair = ("state_dict", "load_state_dict")
    has = [name for name in pair if callable(getattr(callback, name, None))]
    if len(has) == 1:
        (missing,) = {*pair} - {*has}
        raise BadReceiver(
            f"{type(callback).__name__} has a method {has[0]} and no {missing}, so that its state "
            f"would be in no checkpoint. Write {missing} too, or give {has[0]} another name."
        )


def checkpoints_given(given: Any) -> Checkpoints | None:
    """Return the checkpoints that `Trainer(checkpoints=...)` means; None and False are none.

    Raises:
        SettingError: It says neither where nor how they are written.
    """
    if given is None or given is False:
        return None
    if isinstance(given, str | PathLike):
        return Checkpoints(Path(given))
    if isinstance(given, Checkpoints):
        return given
    raise SettingError(
        f"checkpoints={given!r} does not say where they are written. Give a folder, such as "
        "checkpoints='runs/name', or Checkpoints('runs/name', ...)."
    )


def check_made(thing: object) -> None:
    """Refuse a class where an object with `on_<state>` methods is to be subscribed.

    Raises:
        BadReceiver: It is one.
    """
    if isinstance(thing, type):
        raise BadReceiver(
            f"{thing.__name__} is a class, and nothing can be told to it. Make one: "
            f"{thing.__name__}(...)."
        )
