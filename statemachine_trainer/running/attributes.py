"""Names that a trainer does not have: reading one says what it is called, and so does setting one."""

from __future__ import annotations

from typing import Final, NoReturn

from statemachine_trainer.loops.default_tree import where_set
from statemachine_trainer.loops.foreign_names import OF_TRAINER
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.machine.errors import suggest

_NEAR: Final = 0.85
"""How near (0 to 1) the name of an attribute is to that of a setting."""


class NoAttribute(AttributeError):
    """A trainer has no attribute of this name."""

    def __init__(self, name: str, trainer: type) -> None:
        super().__init__(name)
        self._trainer = trainer

    def __str__(self) -> str:
        # Worked out only where somebody reads it: code also asks to see whether there is one.
        name, settings = str(self.args[0]), _settings(self._trainer)
        if name in OF_TRAINER:
            advice = f"{OF_TRAINER[name]}."
        elif name in settings:
            advice = f"It is a setting of a loop: {where_set(name)}."
        else:
            known = [one for one in dir(self._trainer) if not one.startswith("_")]
            advice = suggest(name, [*known, *settings], cutoff=0.6)
        return f"A trainer has no attribute {name!r}. {advice}".rstrip()


def refuse_attribute(trainer: object, name: str) -> NoReturn:
    """Refuse to read an attribute that a trainer does not have.

    Raises:
        NoAttribute: Always, unless a property of this name has raised: then that error.
    """
    asked = getattr(type(trainer), name, None)
    if isinstance(asked, property) and asked.fget is not None:
        asked.fget(trainer)  # Python hides what it raised
    raise NoAttribute(name, type(trainer))


def check_attribute(name: str, trainer: type) -> None:
    """Refuse to set an attribute of a trainer that nobody would read, and that is meant to change it.

    Args:
        name: The name.
        trainer: The class of the trainer.

    Raises:
        SettingError: It is one of another trainer, a setting of a loop, or nearly such.
    """
    if name.startswith("_") or hasattr(trainer, name):
        return
    settings = _settings(trainer)
    if name in settings:
        raise SettingError(
            f"trainer.{name} = ...: that is a setting of a loop. Set it there: {where_set(name)} = ..."
        )
    advice = f"{OF_TRAINER[name]}." if name in OF_TRAINER else suggest(name, settings, cutoff=_NEAR)
    if advice:
        raise SettingError(f"trainer.{name} = ...: nobody would read it. {advice}")


def _settings(trainer: type) -> list[str]:
    return [*getattr(trainer, "more_settings", ())]
