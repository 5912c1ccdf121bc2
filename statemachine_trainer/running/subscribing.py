"""Subscribing to the signals of a trainer: with intervals over its counters, and for the model it trains."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from torch import nn

from statemachine_trainer.loops.foreign_names import advice_on_hooks
from statemachine_trainer.loops.guest import Guest
from statemachine_trainer.loops.intervals import CountedInterval, Every
from statemachine_trainer.loops.steps import hooks_of
from statemachine_trainer.machine.board import NOT_GIVEN, SignalBoard
from statemachine_trainer.machine.errors import UnknownSignal
from statemachine_trainer.running.arguments import check_made
from statemachine_trainer.running.fit_state import Host


def subscribe(board: SignalBoard, name: Any, receiver: Any = NOT_GIVEN, /, **options: Any) -> Any:
    """Subscribe to signals of a board, with intervals over the counters of the run.

    Args:
        board: The board.
        name: A name, or an object with `on_<state>` methods.
        receiver: A function; not given for an object, or to get a decorator.
        **options: Those of `SignalBoard.on`; `every` may be any interval.

    Returns:
        What `SignalBoard.on` returns.

    Raises:
        UnknownSignal: Nothing has this name; where another library calls a hook so, it says what it
            is called here.
        BadReceiver: A class was given in place of an object.
    """
    check_made(name)
    interval = options.get("every")
    if isinstance(interval, Every | str | float | timedelta):
        options["every"] = CountedInterval(interval)
    try:
        return board.on(name, receiver, **options)
    except UnknownSignal as error:
        advice = advice_on_hooks(name)
        if not advice:
            raise
        raise UnknownSignal(f"{error} {advice}") from None


class ModelHooks:
    """Subscribes the `on_<state>` methods of the model that a trainer trains, one model at a time.

    Args:
        host: The trainer.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._model: nn.Module | None = None

    def subscribe(self, model: nn.Module) -> None:
        """Subscribe the methods of a model, and unsubscribe those of the model before."""
        before, self._model = self._model, model
        if isinstance(before, Guest) and before is not model:
            self._host.board.off(before.receiver())
        elif before is not None:
            self._host.board.off(before)
        if isinstance(model, Guest):
            model.subscribe(self._host)
        elif hooks_of(model):
            subscribe(self._host.board, model)
