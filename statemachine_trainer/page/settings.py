"""The settings of a run that the page changes, and what happened to a run beside its curves."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from statemachine_trainer.control.control_errors import PageError
from statemachine_trainer.files import parse_json
from statemachine_trainer.observe.run import NoRun, Run

LONGEST: Final = 1 << 16
"""Bytes of a request."""

_MOST: Final = 200
"""Changes, and marks, that are shown: a script may set something in each batch."""

_EVERY: Final = 5.0
"""Seconds between two readings of the journal of a run of this process."""


def values_of(body: bytes) -> dict[str, object]:
    """Read the settings that a request asks for: `{"lr": 0.01}`.

    Raises:
        PageError: It asks for something else.
    """
    try:
        found = parse_json(body) if len(body) <= LONGEST else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise PageError('That sets nothing. A request names settings: {"lr": 0.01}.')
    return found


def in_json(value: object) -> object:
    """Return a value as JSON can hold it, which has no infinity."""
    return f"{value}" if isinstance(value, float) and not math.isfinite(value) else value


def shown(settings: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, object]]:
    """Return settings, as a look at the fit tells them, for the page."""
    return {name: {**one, "value": in_json(one.get("value"))} for name, one in settings.items()}


def changes_of(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Return what happened to a run beside its training.

    Returns:
        In "changes", what was set while it went on: the step, the name, the two values, when, and by whom ("" for
        the program itself). In "marks", what stands beside the curves: the step, when, and a text. The newest of
        each, no more than a page can show.

    Raises:
        BadRecord, BadJournal: The folder of the run cannot be read.
    """
    changes, marks = [], []
    since = run.begun_anew()
    for event in run.noted("set", "recovery"):
        step, at = event.step or 0, event.at.isoformat()
        texts = [_gone_back(event.facts)] if event.what == "recovery" else []
        for name, one in event.facts.items() if event.what == "set" else ():
            if isinstance(one, Mapping):
                was, now = in_json(one.get("from")), in_json(one.get("to"))
                by = f"{one.get('by', '')}"
                changes.append(
                    {"step": step, "name": name, "from": was, "to": now, "at": at, "by": by}
                )
                texts.append(f"{name} {_written(was)} → {_written(now)}, by {by or 'the program'}")
        if event.at >= since:
            marks += [{"step": step, "at": at, "text": text} for text in texts]
    return {"changes": changes[-_MOST:], "marks": marks[-_MOST:]}


def _gone_back(facts: Mapping[str, Any]) -> str:
    first, last = facts.get("first"), facts.get("last")
    which = "batches"
    if type(first) is int and type(last) is int:
        which = f"batch {last + 1}" if first == last else f"batches {first + 1} to {last + 1}"
    return f"went back, and passed over {which}: {facts.get('reason', 'nobody says why')}"


def _written(value: object) -> str:
    return "none" if value is None else f"{value}"


class Changes:
    """What happened to a run of this process beside its training.

    Its journal is read again where a setting has another value, and every few seconds.

    Args:
        folder: The folder of the run; None if nothing of it is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._values: Sequence[object] = ()
        self._read_at = -math.inf
        self._found: dict[str, list[dict[str, Any]]] = {"changes": [], "marks": []}

    def read(self, settings: Mapping[str, Mapping[str, object]]) -> dict[str, list[dict[str, Any]]]:
        """Return it as `changes_of` does.

        Args:
            settings: The settings as they are.
        """
        values, now = [one["value"] for one in settings.values()], time.monotonic()
        if self._folder is None or (values == self._values and now < self._read_at + _EVERY):
            return self._found
        with suppress(NoRun):  # its folder is made when the fit begins
            self._found = changes_of(Run(self._folder))
            self._values, self._read_at = values, now
        return self._found
