"""What can go wrong, or be told, where a step is compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from statemachine_trainer.loops.loop_errors import TrainingError


class NotCompiled(UserWarning):
    """A step, or a part of it, is done without the compiler; the text says why."""


class CompiledDiffers(TrainingError):
    """A compiled step came to other weights than the same step without the compiler."""


class NotCapturable(TrainingError):
    """A training step, or an optimizer, that cannot become a compiled graph."""


class NotTraceable(NotCapturable):
    """An optimizer whose step cannot become part of a graph."""


class StateMissing(Exception):
    """The optimizer has no state yet for a parameter that it is to update."""


class Stale(Exception):
    """A program was called with other parameters than those it was compiled for."""


class Reached(Exception):
    """A captured graph was called; carries its inputs."""

    def __init__(self, inputs: Sequence[Any]) -> None:
        super().__init__()
        self.inputs = list(inputs)


def reached(*inputs: Any) -> Sequence[Any]:
    """Stand in for a graph: end the call that came to it.

    Raises:
        Reached: Always.
    """
    raise Reached(inputs)


def first_line(error: BaseException) -> str:
    """Shorten an error to a line."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
