"""Running what was started: whole, up to a place, or one transition at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

from statemachine_trainer.machine.driver import Until
from statemachine_trainer.machine.signals import Moment
from statemachine_trainer.observe.progress import Progress
from statemachine_trainer.observe.recorder import Recorder
from statemachine_trainer.running.charge import in_charge
from statemachine_trainer.running.drivers import Drivers
from statemachine_trainer.running.host import Host


class Runner:
    """Runs the active machine of one trainer, in charge of it, and lets those know who are to know.

    Args:
        host: The trainer.
        drivers: Its drivers.
        recorder: Records what is run; None if nothing is kept.
        progress: Shows it; False to show nothing.
    """

    def __init__(
        self,
        host: Host,
        drivers: Drivers,
        recorder: Recorder | None,
        progress: Progress | Literal[False],
    ) -> None:
        self._host = host
        self._drivers = drivers
        self._recorder = recorder
        self._progress = progress

    def run(self, until: Until = None) -> str | None:
        """Go on to the end, or up to `until`, heeding the signals of the system.

        Returns:
            The outcome; None if the machine paused or rests.
        """
        driver, checkpoints = self._drivers.active, self._host.checkpoints
        listening = nullcontext() if checkpoints is None else checkpoints.listening()
        with in_charge(driver), self._recording(), listening, self._showing():
            outcome = driver.run(until)
            if driver.resting and driver is self._drivers.fit and checkpoints is not None:
                checkpoints.write()  # the process may end before it goes on
            return outcome

    def evaluate(self) -> None:
        """Run an evaluation to its end, maybe beside a paused fit, whose checkpoints are left alone."""
        driver = self._drivers.active
        with in_charge(driver), self._recording(), self._showing():
            driver.start()
            driver.run()

    def step(self) -> Moment | None:
        """Make one transition and return it; None if the state rests."""
        driver = self._drivers.active
        with in_charge(driver), self._recording():
            return driver.step()

    def moments(self, until: Until = None) -> Iterator[Moment]:
        """Iterate over the transitions; between two items nobody is in charge."""
        transitions = self._drivers.active.moments(until)
        while True:
            with in_charge(self._drivers.active), self._recording():
                moment = next(transitions, None)
            if moment is None:
                return
            yield moment

    def _recording(self) -> AbstractContextManager[None]:
        if self._recorder is None:
            return nullcontext()
        return self._recorder.recording(self._drivers.active)

    def _showing(self) -> AbstractContextManager[None]:
        return self._progress.showing(self._host) if self._progress else nullcontext()
