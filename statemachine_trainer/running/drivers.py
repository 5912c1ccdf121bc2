"""The drivers of a trainer, one for each of its root loops."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping

from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.mistakes import NeverTaken
from statemachine_trainer.machine.board import SignalBoard
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.errors import NotStarted, UnknownLoop, level_of_caller, suggest
from statemachine_trainer.machine.loop import Loop


class Drivers(Mapping[str, Driver]):
    """The drivers of one trainer by name ("fit", "validate", "test", "predict"), and which is active.

    Args:
        loops: The loops that they run, that of "fit" first.
        sender: First argument of receivers: the trainer.
        board: The board on which all of them put their signals.

    Attributes:
        fit: The driver of the fit.
        active: The driver that ran last; that of the fit before any run.
    """

    def __init__(self, loops: Mapping[str, Loop], sender: object, board: SignalBoard) -> None:
        self._drivers = {
            name: Driver(loop, name=name, sender=sender, board=board)
            for name, loop in loops.items()
        }
        self.fit = self.active = self._drivers["fit"]

    def __getitem__(self, name: str) -> Driver:
        return self._drivers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._drivers)

    def __len__(self) -> int:
        return len(self._drivers)

    def named(self, name: str) -> Driver:
        """Return the driver of a loop.

        Raises:
            UnknownLoop: There is no loop of this name.
        """
        driver = self.get(name)
        if driver is None:
            raise UnknownLoop(
                f"The trainer has no loop {name!r}. {suggest(str(name), self)} The graph of a loop "
                "inside: graph().open(path)."
            )
        return driver

    def post(self, event: str) -> None:
        """Post an event to the active machine. Before its start this is refused: a start drops events.

        Raises:
            UnknownEvent: No loop takes it.
            NotStarted: The machine was not started.

        Warns:
            NeverTaken: The machine has ended. To stop it then is no mistake.
        """
        driver = self.active
        driver.post(event)
        if driver.outcome is not None and not driver.running and event != "stop":
            warnings.warn(
                f"{event!r} was posted after {driver.name!r} had ended with {driver.outcome!r}: nothing takes it. Post "
                "it while the run goes on, such as from a receiver.",
                NeverTaken,
                stacklevel=level_of_caller(),
            )
        if _never_started(driver):
            driver.withdraw(event)
            raise NotStarted(
                f"{event!r} was posted before the start, which would forget it. Post it after start(model, "
                "loader), or from a receiver: trainer.on('fit_start', lambda trainer: ...)."
            )

    def pause(self) -> None:
        """Pause the active machine. Before its start this is refused: a start drops the request.

        Raises:
            NotStarted: The machine was not started.
        """
        driver = self.active
        # Of several ranks all pause: one alone would leave the others waiting.
        (driver if driver.post_to is None else driver.post_to).pause()
        if _never_started(driver):
            driver.take_pause()
            raise NotStarted(
                "Nothing was started that could pause, and a start would forget that it was asked to. Say "
                "where: fit(model, loader, until='epoch_end'); or stand before the first state: "
                "start(model, loader)."
            )

    @property
    def context(self) -> Context:
        """The context of what ran last.

        Raises:
            NotStarted: Nothing was run yet.
        """
        context = self.active.context  # receivers ask for it in every batch
        if not isinstance(context, Context):
            raise NotStarted("There is no context before the first fit, validate, test or predict.")
        return context

    @property
    def counting(self) -> Context:
        """The context of the fit if there was one, because evaluations count no epochs.

        Raises:
            NotStarted: Nothing was run yet.
        """
        return context_of(self.fit) or self.context


def context_of(driver: Driver) -> Context | None:
    """Return the context of a driver; None if nothing was started."""
    context = driver.context
    return context if isinstance(context, Context) else None


def _never_started(driver: Driver) -> bool:
    """Return whether a machine was never started."""
    return driver.path is None and driver.outcome is None and not driver.running
