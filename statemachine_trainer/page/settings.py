"""The settings of a run that the page changes, and those that were changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from statemachine_trainer.control.control_errors import PageError
from statemachine_trainer.files import parse_json
from statemachine_trainer.observe.run import NoRun, Run

LONGEST: Final = 1 << 16
"""Bytes of a request."""


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


def changes_of(run: Run) -> list[dict[str, Any]]:
    """Return what was set while the run went on: for each the step, the name, and the two values.

    Raises:
        BadRecord, BadJournal: The folder of the run cannot be read.
    """
    return [
        {"step": event.step or 0, "name": name, **{k: in_json(one.get(k)) for k in ("from", "to")}}
        for event in run.history()
        if event.what == "set" and isinstance(event.facts, Mapping)
        for name, one in event.facts.items()
        if isinstance(one, Mapping)
    ]


class Changes:
    """What was set in a run of this process. Its journal is read again where a value is another one.

    Args:
        folder: The folder of the run; None if nothing of it is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._values: Sequence[object] = ()
        self._found: list[dict[str, Any]] = []

    def read(self, settings: Mapping[str, Mapping[str, object]]) -> list[dict[str, Any]]:
        """Return them as `changes_of` does.

        Args:
            settings: The settings as they are.
        """
        values = [one["value"] for one in settings.values()]
        if self._folder is not None and values != self._values:
            try:
                self._found = changes_of(Run(self._folder))
            except NoRun:
                return []  # its folder is made when the fit begins
            self._values = values
        return self._found
