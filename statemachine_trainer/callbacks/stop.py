"""Stopping a run at its next boundary, with a checkpoint, when the operating system asks for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NoReturn

from statemachine_trainer.callbacks.interruption import (
    Heed,
    Interrupted,
    heeding,
    raise_interruption,
)
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.parallel.ranks import Ranks

_log = logging.getLogger(__name__)


class Stop:
    """Stops the fit of one trainer.

    Of several ranks one may hear of a signal before the others do. It tells them where all of them
    meet, and they stop together.

    Args:
        driver: Returns the driver of the fit.
        write: Writes a checkpoint, if the state can be written down at this boundary, and tells
            whether it has.

    Attributes:
        came: Number of the signal that came to the fit that ran last; None if none did.
    """

    def __init__(self, driver: Callable[[], Driver], write: Callable[[], bool]) -> None:
        self._get_driver = driver
        self._write = write
        self.came: int | None = None
        self._heed: Heed | None = None
        self._handling = False  # whether the handler of a signal is at work
        self._stopped = False  # whether a checkpoint was written for the signal
        self._agreed = False

    @property
    def signum(self) -> int | None:
        """Number of the signal that came to the fit that is running; None while none has."""
        return None if self._heed is None else self._heed.signum

    @contextmanager
    def listening(self, on_signals: bool) -> Iterator[None]:
        """Heed signals while the block runs the fit.

        Args:
            on_signals: Whether any are heeded; those that another rank tells of always are.
        """
        self._stopped = self._agreed = False
        heeded: AbstractContextManager[Heed]
        heeded = heeding(self._ask) if on_signals else nullcontext(Heed(lambda: None))
        with heeded as heed:
            self._heed = heed
            try:
                yield
            finally:
                self._heed, self.came = None, heed.signum

    def finish(self, *, written_at_end: bool) -> None:
        """Stop the fit if it returned before it saw a signal; hear of those of other ranks.

        Args:
            written_at_end: Whether a checkpoint is written when the fit has ended.
        """
        heed, ranks = self._heed, Ranks.here()
        assert heed is not None
        if ranks is None or self._driver.path is None:  # a rank may be paused alone
            heed.signum = _heard_by_any(ranks, heed.signum)
            if heed.signum is not None and not self._stopped:
                self._stop_at_rest(written_at_end=written_at_end)

    def agree(self, signum: int) -> None:
        """Stop at the next boundary, as all ranks do."""
        if self._heed is not None and not self._agreed:
            self._heed.signum, self._agreed = signum, True
            self._driver.at_boundary(self._stop)

    def end_run(self, checkpoint: Path | None) -> NoReturn:
        """End the run as the signal asks for.

        Raises:
            Interrupted: Always, but after Ctrl-C at a prompt of Python.
        """
        signum = self.came
        assert signum is not None
        _log.warning("%s", Interrupted(signum, checkpoint))
        if self._stopped:  # torchrun ends the others once it sees that one has ended
            _heard_by_any(Ranks.here(), None)
        raise_interruption(signum, checkpoint)

    # -- parts -----------------------------------------------------------------------------------

    @property
    def _driver(self) -> Driver:
        return self._get_driver()

    def _ask(self) -> None:
        """Called by the handler: the work is done at the next boundary, never at whatever line was running."""
        if Ranks.here() is not None:
            return  # the others hear of it where all of them meet, and stop there too
        self._handling = True
        try:
            self._driver.at_boundary(self._stop)
        finally:
            self._handling = False

    def _stop(self) -> None:
        driver = self._driver
        if self.signum is None:
            return  # an error was faster, and the run that was to be stopped is over
        if self._handling:  # the machine is at rest, about to run, or it has just returned
            driver.pause()
        elif self._write():
            self._stopped = True
            driver.pause()
        else:
            driver.at_boundary(self._stop)

    def _stop_at_rest(self, *, written_at_end: bool) -> None:
        """Write a checkpoint after a signal that came when the machine was not running."""
        driver = self._driver
        if driver.path is None and written_at_end:
            return  # the fit had ended, and that was written
        driver.at_boundary(self._stop)
        while not self._stopped and driver.path is not None:
            driver.run()
            if driver.resting and not self._stopped:  # it would rest here again, without an end
                _log.warning(
                    "%r waits for something from outside, with a batch in flight that cannot be written down: no "
                    "checkpoint is written of this place. The run can go on from the one before.",
                    driver.path,
                )
                return


def _heard_by_any(ranks: Ranks | None, signum: int | None) -> int | None:
    """Return the signal that any rank heard; None if none did. A collective."""
    return signum if ranks is None else int(ranks.largest([signum or 0])[0]) or None
