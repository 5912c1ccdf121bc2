"""Several runs on one page: a table of what they were set to otherwise, and their curves."""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from statemachine_trainer.control.control_errors import PageError
from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.observe.comparison import (
    RunSummary,
    compared,
    comparison,
    metrics_of,
    read_runs,
)
from statemachine_trainer.observe.difference import compare_runs
from statemachine_trainer.observe.run import NoRun, Run
from statemachine_trainer.page.recorded import FolderRun, curves_of, curves_of_steps


class SeveralRuns:
    """Watches the runs at and below some folders. Each has a page of its own as well.

    Args:
        folders: Where to look. Runs that begin later are shown too.

    Raises:
        NoRun: There is no such folder, or no run in them.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = [*folders]
        # The numbers of runs stay what they are when others come: the page has them in addresses.
        self._keys: dict[Path, int] = {}
        self._pages: dict[int, FolderRun] = {}
        self._lock = threading.Lock()
        if not self._read():
            places = ", ".join(map(str, folders))
            raise NoRun(f"No run is recorded in {places} or three folders down.")

    def _read(self) -> dict[int, RunSummary]:
        found = read_runs(self._folders)
        with self._lock:
            return {self._keys.setdefault(run.path, len(self._keys)): run for run in found}

    def state(self) -> dict[str, Any]:
        """The table of the runs, as data that JSON can hold."""
        runs = self._read()
        told = comparison([*map(compared, runs.values())])
        return {
            "folders": ", ".join(map(str, self._folders)),
            "runs": [
                {"key": key, "name": one.name, "status": one.status, "trouble": one.trouble}
                for key, one in runs.items()
            ],
            "columns": [
                {
                    "kind": row.kind,
                    "name": row.name,
                    "cells": row.cells,
                    "numbers": [*map(_number, row.values)],
                }
                for row in told.rows
            ],
            "same": f"{told.same_in_words}." if told.same else "",
        }

    def curves(self, keys: Collection[int]) -> dict[str, Any]:
        """The curves of some runs: for each metric, the points of each run that has it."""
        with self._lock:
            places = {key: path for path, key in self._keys.items() if key in keys}
        found: dict[str, dict[int, Any]] = {}
        for key, path in places.items():
            with suppress(StateMachineError):  # the table says what is wrong with it
                run = Run(path)
                for name, points in (curves_of(metrics_of(run)) | curves_of_steps(run)).items():
                    found.setdefault(name, {})[key] = points
        return found

    def difference(self, one: int, other: int) -> dict[str, Any]:
        """Where two runs part, as `smt diff` says it.

        Returns:
            "verdict" and "text" in words; in "steps" between which steps of their curves they part, or None if
            they do not, as far as it is known.

        Raises:
            PageError: There is no such run.
            NoRun, BadRecord, BadJournal, BadFingerprints: One of them cannot be read.
        """
        found = compare_runs(self._place_of(one), self._place_of(other))
        parting = found.parting
        # Of a run whose steps begin anew the curves are those of the last round.
        drawn = parting is not None and not parting.again
        return {
            "verdict": found.verdict,
            "text": str(found).removesuffix(found.verdict).rstrip(),
            "steps": [*parting.steps] if parting is not None and drawn else None,
        }

    def key_of(self, folder: Path) -> int:
        """Return the number that a run has here.

        Raises:
            NoRun: No run is recorded in the folder itself.
        """
        wanted = Run(folder).path.resolve()
        with self._lock:
            for path, key in self._keys.items():
                if path.resolve() == wanted:
                    return key
        raise NoRun(f"No run is recorded in {folder}.")

    def _place_of(self, key: int) -> Path:
        with self._lock:
            path = next((path for path, known in self._keys.items() if known == key), None)
        if path is None:
            raise PageError(f"There is no run {key} here. Go back to the list of runs.")
        return path

    def run(self, key: int) -> FolderRun:
        """One of the runs.

        Raises:
            PageError: There is no such run, or its graph is not recorded.
            NoRun: It is there no longer.
        """
        path = self._place_of(key)
        with self._lock:
            if key not in self._pages:
                self._pages[key] = FolderRun(path)
            return self._pages[key]

    def held(self) -> list[Path]:
        """The runs that were shown on a page of their own and stand still until somebody lets them go on."""
        with self._lock:
            shown = [(path, self._pages.get(key)) for path, key in self._keys.items()]
        return [path for path, page in shown if page is not None and _is_held(page)]


def _is_held(run: FolderRun) -> bool:
    try:
        return run.is_held()
    except StateMachineError:
        return False  # it is there no longer


def _number(value: object) -> float | None:
    """Return what the table is sorted by; JSON has no NaN and no infinity."""
    try:
        number = float(value)  # type: ignore[arg-type]  # counts of epochs and steps are told as text
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
