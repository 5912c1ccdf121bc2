"""In a replay, settings are changed again where somebody changed them from outside while the run went on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.machine.errors import UnknownSignal
from statemachine_trainer.observe.run import Run

if TYPE_CHECKING:
    from statemachine_trainer.trainer import Trainer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Change:
    """Settings that were changed at one boundary: before the work of a state, so many batches done."""

    before: str
    batch: int
    values: Mapping[str, Any]


def set_again(trainer: Trainer, run: Run) -> list[Callable[[], None]]:
    """Let a replay change what was changed from outside. What the code itself posts, it posts again.

    Args:
        trainer: The trainer that replays the run, at the checkpoint.
        run: The run.

    Returns:
        Functions that end it.

    Raises:
        BadJournal: The journal of the run cannot be read.
    """
    changes = _changes_of(run)

    def change(path: str) -> None:
        for one in changes:
            if one.before == path and one.batch == trainer.context.counts.batch:
                try:
                    trainer.post("set", **one.values)
                except SettingError as error:
                    _log.warning("What was set from outside is not set again: %s", error)

    if trainer.path is not None:
        change(trainer.path)
    removers = []
    for path in {one.before for one in changes}:
        try:
            removers.append(trainer.on(path, lambda path=path: change(path)).cancel)
        except UnknownSignal:  # the code has other loops now
            _log.warning("What was set before %s is not set again: there is no such state.", path)
    return removers


def _changes_of(run: Run) -> list[_Change]:
    found: list[_Change] = []
    since = run.begun_anew()
    for event in run.noted("set"):
        told = [one for one in event.facts.values() if isinstance(one, Mapping)]
        places = {(one.get("before"), one.get("batch")) for one in told if one.get("by")}
        if event.at < since or len(places) != 1:
            continue
        ((before, batch),) = places
        if type(before) is not str or type(batch) is not int:
            continue
        values = {name: one.get("to") for name, one in event.facts.items()}
        # What a resume has gone back over did not happen.
        found = [one for one in found if one.batch <= batch]
        found.append(_Change(before, batch, values))
    return found
