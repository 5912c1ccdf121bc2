"""What surrounds a run: the lock on its folder, logging, the record, the progress, errors told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch

from statemachine_trainer.control.ownership import FolderInUse, Ownership
from statemachine_trainer.loops.base import take_limits
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.metrics.log import log, log_dict, logging_to
from statemachine_trainer.loops.ranks_compared import check_environment
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.errors import NotStarted
from statemachine_trainer.observe.progress import Progress
from statemachine_trainer.observe.recorder import Recorder
from statemachine_trainer.parallel import numbers_needed_on
from statemachine_trainer.parallel.ranks import Ranks
from statemachine_trainer.running.drivers import Drivers, context_of
from statemachine_trainer.running.fit_state import Host
from statemachine_trainer.running.rehearsal import refuse_in_rehearsal
from statemachine_trainer.running.subscribing import (
    tell_of_error,
    tell_of_halt,
    tell_of_return,
)
from statemachine_trainer.running.switches import Switches
from statemachine_trainer.snapshot.ranked import do_together


class Surroundings:
    """Context managers around the runs of one trainer.

    Args:
        host: The trainer.
        drivers: Its drivers.
        recorder: Records runs; None to record nothing.
        progress: Shows runs; False to show nothing.
        owner: The lock on the folder of the run; None if there is no folder.
        switches: Those of torch that are on while something runs.

    Attributes:
        halted: Whether an error ended the fit, or a state was loaded: callbacks are told when it goes on.
    """

    def __init__(
        self,
        host: Host,
        drivers: Drivers,
        recorder: Recorder | None,
        progress: Progress | Literal[False],
        owner: Ownership | None,
        switches: Switches,
    ) -> None:
        self.halted = False
        self._host = host
        self._drivers = drivers
        self._fit = drivers.fit
        self._recorder = recorder
        self._progress = progress
        self._owner = owner
        self._switches = switches

    @contextmanager
    def in_charge(self, driver: Driver) -> Iterator[None]:
        """Context manager around every run: logging, gradients, switches of torch, clock and limits.

        Within the block `log` and `log_dict` write to the run, also as `self.log` and `self.log_dict` in a model
        without such a method. Gradients are on, and the clock of the run is running. The limits are read from the
        loops, because they may have changed in a pause.

        Args:
            driver: The driver of the machine.

        Raises:
            NotStarted: Nothing was started.
        """
        context = _begun(driver)
        # A name that the model has already, be it a layer or a method, is the model's.
        lent = [one for one in (log, log_dict) if not hasattr(context.model, one.__name__)]
        for one in lent:
            context.model.__dict__[one.__name__] = one
        take_limits(driver.root, driver.path, context)
        context.start_clock()
        try:
            if self.halted and driver is self._fit:
                self.halted = False
                tell_of_return(self._host.board, self._host)
            needed = numbers_needed_on(context.equipment.device)
            with needed, logging_to(context), torch.enable_grad(), self._switches.on():
                yield
        except BaseException as error:
            from statemachine_trainer.loops.hints import explain  # errors alone need it

            explain(error, context, driver.path)
            context.steps.failed(error)
            tell_of_error(self._host.board, error)
            if driver is self._fit:
                self.halted = True
                tell_of_halt(self._host.board, self._host)
            raise
        finally:
            context.stop_clock()
            for one in lent:
                context.model.__dict__.pop(one.__name__, None)

    @contextmanager
    def taking_folder(self, *, anew: bool) -> Iterator[None]:
        """Lock the folder of the run. The lock stays after the block, unless it fails or nothing is left to run."""
        owner = self._owner
        check_environment(Ranks.here(), self._host)  # before a folder is made
        held, done = owner is not None and owner.held, False
        try:
            # A collective even if this rank has no folder, because another rank may have one.
            do_together(Ranks.here(), lambda: self._take_folder(anew))
            yield
            done = True
        finally:
            if owner is not None and not done and not held:
                owner.give_back()
            elif owner is not None and self._fit.path is None:
                owner.release()

    def _take_folder(self, anew: bool) -> None:
        if (
            self._recorder is not None and self._host.checkpoints is None
        ):  # which look for themselves
            self._recorder.check_writable()
        if self._owner is not None:
            self._owner.take(anew=anew)

    @contextmanager
    def owning(self, driver: Driver) -> Iterator[None]:
        """Lock the folder of the run from the start of a fit until it has ended.

        If another run has locked the folder, an evaluation runs without it and is not recorded.

        Raises:
            FolderInUse: Another run has locked the folder, or had meanwhile.
        """
        _begun(driver)  # else nothing is to be locked
        owner, fit = self._owner, self._fit
        if owner is None:
            yield
            return
        try:
            owner.take()
        except FolderInUse:
            if driver is fit:
                raise
        try:
            yield
        finally:
            if fit.path is None:
                owner.release()

    def _recording(self) -> AbstractContextManager[None]:
        if self._recorder is None:
            return nullcontext()
        return self._recorder.recording(self._drivers.active)

    @contextmanager
    def of_transition(self, driver: Driver) -> Iterator[None]:
        """Context manager around one transition."""
        with (
            self.owning(driver),
            self.in_charge(driver),
            self._recording(),
            self.naming_lost_ranks(),
        ):
            yield

    @contextmanager
    def of_run(
        self, driver: Driver, listening: AbstractContextManager[None] | None = None
    ) -> Iterator[None]:
        """Context manager around a run.

        Args:
            driver: The driver of the machine.
            listening: Listens to signals of the operating system; None if nothing does.
        """
        with (
            self.owning(driver),
            self.in_charge(driver),
            self._recording(),
            listening or nullcontext(),
            self._showing(),
            self.naming_lost_ranks(),  # within `listening`, so that a signal does not come first
        ):
            yield

    def naming_lost_ranks(self) -> AbstractContextManager[None]:
        if not Ranks.are_up():
            return nullcontext()
        from statemachine_trainer.running.lost_ranks import naming_lost_ranks

        return naming_lost_ranks(None if self._recorder is None else self._recorder.folder.path)

    def _showing(self) -> AbstractContextManager[None]:
        return self._progress.showing(self._host) if self._progress else nullcontext()


def _begun(driver: Driver) -> Context:
    """Return the context of a driver that is about to run.

    Raises:
        NotStarted: Nothing was started.
    """
    refuse_in_rehearsal()
    context = context_of(driver)
    if context is None:
        raise NotStarted(
            "Nothing was started: call fit(model, loader), or start(model, loader) first."
        )
    return context
