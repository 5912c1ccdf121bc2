"""Who listens to a trainer: receivers, its model, and callbacks that are told of errors."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from statemachine_trainer.intervals import Every, Interval
from statemachine_trainer.loops.foreign_names import advice_on_hooks
from statemachine_trainer.loops.steps import Steps, hooks_of
from statemachine_trainer.machine.board import NOT_GIVEN, SignalBoard
from statemachine_trainer.machine.errors import UnknownSignal
from statemachine_trainer.running.arguments import check_made
from statemachine_trainer.running.fit_state import Host


def subscribe(board: SignalBoard, name: Any, receiver: Any = NOT_GIVEN, /, **options: Any) -> Any:
    """Subscribe to signals of a board, with intervals over the counters of the run.

    Args:
        board: The board.
        name: A name, or an object with `on_<state>` methods.
        receiver: A function; left out for an object or a decorator.
        **options: Those of `SignalBoard.on`; `every` may be any interval.

    Returns:
        What `SignalBoard.on` returns.

    Raises:
        UnknownSignal: Nothing has this name. For a hook of another library the message gives our name.
        BadReceiver: A class was given in place of an object.
    """
    check_made(name)
    interval = options.get("every")
    if isinstance(interval, Every | str | float | timedelta):
        options["every"] = Interval(interval)
    try:
        return board.on(name, receiver, **options)
    except UnknownSignal as error:
        advice = advice_on_hooks(name)
        if not advice:
            raise
        raise UnknownSignal(f"{error} {advice}") from None


def subscribe_model(steps: Steps, before: Steps | None, trainer: Host) -> None:
    """Subscribe the `on_<state>` methods of a model, and unsubscribe those of the previous model.

    Args:
        steps: The steps of the model.
        before: Those of the previous model, if there was one.
        trainer: First argument of the methods.
    """
    if before is not None and not (steps.foreign and before.model is steps.model):
        trainer.board.off(before.receiver())
    if not steps.subscribe(trainer) and hooks_of(steps.model):
        subscribe(trainer.board, steps.model)


def samples_are_counted(trainer: Host) -> bool:
    """Return whether a receiver or the checkpoints of a trainer go by the number of samples."""
    subscriptions = trainer.board.subscriptions
    intervals: list[object] = [one.every for one in subscriptions]
    intervals.append(trainer.checkpoints)
    if any(getattr(getattr(i, "every", None), "unit", None) == "sample" for i in intervals):
        return True
    owners = (getattr(one.receiver, "__self__", None) for one in subscriptions)
    return any(getattr(owner, "counts_samples", False) is True for owner in owners)


def tell_of_error(board: SignalBoard, error: BaseException) -> None:
    """Tell an error that ends the run to callbacks with a method `failed(error)`, such as trackers."""
    _tell(board, "failed", error)


def tell_of_halt(board: SignalBoard, trainer: Any) -> None:
    """Tell callbacks with a method `halted(trainer)` that an error left the fit where it stands."""
    _tell(board, "halted", trainer)


def tell_of_return(board: SignalBoard, trainer: Any) -> None:
    """Tell callbacks with a method `goes_on(trainer)` that the fit goes on after an error, or with a loaded state."""
    _tell(board, "goes_on", trainer)


def _tell(board: SignalBoard, method: str, *arguments: object) -> None:
    owners = {
        id(o): o for one in board.subscriptions if (o := getattr(one.receiver, "__self__", None))
    }
    for owner in owners.values():
        hear = getattr(owner, method, None)
        if callable(hear):
            hear(*arguments)
