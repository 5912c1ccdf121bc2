"""Being in charge of a machine: what holds while it works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from statemachine_trainer.loops.guest import Guest
from statemachine_trainer.loops.log import log, logging_to
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.errors import NotStarted
from statemachine_trainer.running.drivers import context_of
from statemachine_trainer.running.limits import take_limits


@contextmanager
def in_charge(driver: Driver) -> Iterator[None]:
    """Let `log` reach the run, also as `self.log` in a model that has no such method; run the clock.

    The limits are those that the loops have now: they may have been changed in a pause.

    Args:
        driver: The driver of the machine.

    Raises:
        NotStarted: Nothing was started.
    """
    context = context_of(driver)
    if context is None:
        raise NotStarted(
            "Nothing was started: call fit(model, loader), or start(model, loader) first."
        )
    lends = not hasattr(context.model, "log")
    if lends:
        context.model.__dict__["log"] = log
    take_limits(driver, context)
    context.start_clock()
    try:
        with logging_to(context), torch.enable_grad():
            yield
    except BaseException as error:
        if isinstance(context.model, Guest):
            context.model.failed(error)
        raise
    finally:
        context.stop_clock()
        if lends:
            context.model.__dict__.pop("log", None)
