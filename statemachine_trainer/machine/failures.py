"""Error edges at work: which edge an exception takes, and what is put back before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Self

from statemachine_trainer.machine.declaration import is_transient
from statemachine_trainer.machine.errors import NotUndone
from statemachine_trainer.machine.loop import SEPARATOR, Loop


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that took an error edge. It holds text only, so that nothing of the state stays alive.

    Attributes:
        path: Path of the state that raised.
        error: Name of the type that the edge is declared for.
        text: Type and message of the exception.
        times: How often in a row the state has raised.
    """

    path: str
    error: str
    text: str
    times: int

    @classmethod
    def of(cls, path: str, error: Exception, declared: str, times: int) -> Self:
        """Describe an error."""
        try:
            text = f"{type(error).__name__}: {error}"
        except Exception:  # a broken `__str__` must not hide the error
            text = type(error).__name__
        return cls(path, declared, text[:2000], times)

    def state_dict(self) -> dict[str, Any]:
        """Return the failure as plain data."""
        return asdict(self)


Undo = Callable[[Exception], None]


class Undos:
    """What undoes the states since the last boundary that is not transient.

    Attributes:
        steps: One function for each state that has worked since, the last one last.
        begin: Path of the state behind that boundary.
        back: Path of the state at which the machine stands again after an error; None if at none.
    """

    def __init__(self) -> None:
        self.steps: list[Undo] = []
        self.begin = ""
        self.back: str | None = None

    def clear(self) -> None:
        """Forget all of it."""
        self.steps.clear()
        self.begin, self.back = "", None


def undoing(
    path: str,
    loop: Loop,
    work: Callable[[], object],
    failures: dict[str, int],
    undos: Undos,
) -> Callable[[], object]:
    """Wrap the work of a state, so that what it changed is put back if it raises.

    Only states for whose errors there is an edge are wrapped, and those before them that are undone
    with them: it takes time at each call. What lives at a transient boundary cannot be put back. So
    an error behind one leads back to the last boundary that is not transient.

    Args:
        path: Path of the state.
        loop: Its loop.
        work: Its work, a method of the loop.
        failures: How often each state has raised in a row; the state is taken out when it has worked.
        undos: What undoes the states before; shared by all states of a machine.
    """
    state = path.rpartition(SEPARATOR)[2]
    begins = not is_transient(work)

    def run() -> object:
        if begins or not undos.begin:
            undos.clear()
            undos.begin = path
        undo = loop.undo_of(state)
        if undo is not None:
            undos.steps.append(undo)
        try:
            event = work()
        except Exception as error:
            while undos.steps:
                _undo(path, undos.steps.pop(), error)
            undos.back, undos.begin = undos.begin, ""
            raise
        if failures:
            failures.pop(path, None)
        return event

    return run


def _undo(path: str, undo: Undo, error: Exception) -> None:
    try:
        undo(error)
    except Exception as another:
        raise NotUndone(
            f"State {path!r} raised {type(error).__name__}, and putting back what it had changed "
            f"raised {type(another).__name__}: {str(another).rstrip('.')}. The run cannot go on from here: resume from "
            "the last checkpoint."
        ) from error
