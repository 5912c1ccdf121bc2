"""How far a debugger goes in one move, as conditions for `run(until=...)`."""

from __future__ import annotations

from collections.abc import Callable

from statemachine_trainer.machine.loop import SEPARATOR
from statemachine_trainer.machine.signals import Moment


def over(path: str) -> Callable[[Moment], bool]:
    """Return a condition that holds at the next state of the same loop, or once the loop is left.

    Args:
        path: Path of the state about to run. What lies in loops inside its loop is passed over.
    """
    loop, left = path.rpartition(SEPARATOR)[0], out(path)

    def reached(moment: Moment) -> bool:
        return left(moment) or moment.target.rpartition(SEPARATOR)[0] == loop

    return reached


def out(path: str) -> Callable[[Moment], bool]:
    """Return a condition that holds once the loop of a state is left, or entered anew.

    Args:
        path: Path of the state about to run.
    """
    loop = path.rpartition(SEPARATOR)[0]
    root = path.partition(SEPARATOR)[0]

    def reached(moment: Moment) -> bool:
        # Of an evaluation in the midst of it nothing is known here.
        is_ours = moment.path.partition(SEPARATOR)[0] == root
        return is_ours and not moment.path.startswith(loop + SEPARATOR)

    return reached
