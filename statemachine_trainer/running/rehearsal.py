"""Looks at what a fit would use, without starting it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Final

from torch import nn
from torch.optim import Optimizer

from statemachine_trainer.audit.report import Audit, audit
from statemachine_trainer.loops.assembly import Equipment
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.fresh_start import begin_fit, replace_data
from statemachine_trainer.loops.plain import PlainParts
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.running.fit_state import Host
from statemachine_trainer.snapshot.held import own_states, restore_own
from statemachine_trainer.snapshot.rng import isolated_rng

_REHEARSING: Final = ContextVar("rehearsing", default=False)


class OnlyRehearsed(StateMachineError):
    """Something would run where fits are only looked at."""


@contextmanager
def rehearsal() -> Iterator[None]:
    """Context manager in which `Trainer.start` starts nothing: `Trainer.audit` then lists what it would use."""
    token = _REHEARSING.set(True)
    try:
        yield
    finally:
        _REHEARSING.reset(token)


def is_rehearsal() -> bool:
    """Whether fits are only looked at; see `rehearsal`."""
    return _REHEARSING.get()


def refuse_in_rehearsal() -> None:
    """Refuse to run anything in a rehearsal.

    Raises:
        OnlyRehearsed: This is one.
    """
    if is_rehearsal():
        raise OnlyRehearsed(
            "`smt audit` runs no training and no evaluation. Let the function call trainer.start(...), with the "
            "arguments of fit, and return the trainer."
        )


def audit_unstarted(
    equipment: Equipment,
    driver: Driver,
    host: Host,
    model: nn.Module,
    train: Any,
    validation: Any,
    parts: PlainParts,
) -> Audit:
    """List what a fit would use, and leave all as it is: the trainer, its folder, and all generators.

    The model stays on its device. `configure_optimizers`, and functions that make loaders, an optimizer or a
    scheduler, are called. They warn when the fit starts, not here.

    Args:
        equipment: The device, precision and seed of the trainer.
        driver: The driver of its fit.
        host: The trainer.
        model: As for `Trainer.start`.
        train: The training data.
        validation: The validation data.
        parts: What a plain model is given.

    Raises:
        ModelError: A step is missing, or there is no training data.
        OptimizerError: There is no valid optimizer.
    """
    newest, reading_nothing_ahead = equipment.newest, copy.copy(equipment)
    reading_nothing_ahead.prefetch = False
    given = {"model": model, "train": train, "validation": validation, "parts": vars(parts)}
    listeners = [one.receiver for one in host.board.subscriptions]
    with (
        warnings.catch_warnings(action="ignore"),
        isolated_rng(),
        _own_generators_kept({**given, "listeners": listeners}),
        _as_it_was(parts.optimizer),
    ):
        context = reading_nothing_ahead.context(model, host, parts, moved=False)
        equipment.newest = context  # an optimizer may be made of its number of steps
        try:
            found = _equip(context, train, validation)
        finally:
            equipment.newest = newest
        listed = audit(host.board, driver, context)
    listed.unfinished += found
    return listed


def _equip(context: Context, train: Any, validation: Any) -> list[str]:
    """Give a context data and optimizers as a fit does; return what is not known before a fit has begun."""
    data = partial(replace_data, context, train, validation, 0)
    if not context.steps.foreign:
        context.data_to_come = data
        begin_fit(context)
        context.have_data()
        return []
    if train is not None:
        data()
    return [
        "The model is of another library: optimizers, callbacks and data of its own are known when its fit has begun. "
        "start(...), then audit(), lists them."
    ]


@contextmanager
def _own_generators_kept(roots: dict[str, Any]) -> Iterator[None]:
    """Put the generators that can be reached back where they were: code that is called may draw."""
    states = own_states(roots)
    try:
        yield
    finally:
        restore_own(roots, states)


@contextmanager
def _as_it_was(optimizer: object) -> Iterator[None]:
    """Undo what schedulers write into an optimizer that was given as an object when they are made."""
    if not isinstance(optimizer, Optimizer):
        yield
        return
    attributes = dict(vars(optimizer))
    groups = [(group, dict(group)) for group in optimizer.param_groups]
    try:
        yield
    finally:
        vars(optimizer).clear()
        vars(optimizer).update(attributes)
        for group, was in groups:
            group.clear()
            group.update(was)
