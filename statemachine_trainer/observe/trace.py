"""A run as a trace for chrome://tracing and ui.perfetto.dev: states as slices inside their loops.

The format is the JSON array of the "Trace Event Format" of Chromium: it may lack its closing
bracket, so that the file of a run that was killed can be looked at, too.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from statemachine_trainer.files import path_given
from statemachine_trainer.machine.board import SignalBoard
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.edges import Work
from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.machine.loop import SEPARATOR
from statemachine_trainer.machine.signals import (
    ENTER,
    EXIT,
    Call,
    Moment,
    Part,
    Subscription,
    label_of,
)

_log = logging.getLogger(__name__)

ReadMetrics = Callable[[], Mapping[str, float]]

_AT_ONCE: Final = 512
"""Lines that are kept before they are written together."""

_READ_AFTER: Final = ("epoch_end", "validation_end")
"""States after whose work the metrics are read: they are whole then."""


class TraceUnwritable(StateMachineError):
    """The file of a trace cannot be written."""


class Trace:
    """Writes the trace of a run from now on: `with trainer.trace("trace.json"): ...`.

    Loops are slices, the states in them slices inside, receivers slices between the states; events
    are instants, and metrics counters, read at the ends of epochs and validations. An evaluation in
    the middle of a fit has a track of its own. The file is written as the run goes on, in blocks of
    whole lines; nothing else is kept in memory.

    A context manager: leaving the block ends it.

    Args:
        path: The file; replaced if it is there.
        drivers: The machines to trace.
        board: The board of their signals.
        metrics: Reads the metrics; none are written unless given.

    Raises:
        TraceUnwritable: The file cannot be opened.
    """

    def __init__(
        self,
        path: str | Path,
        drivers: Sequence[Driver],
        board: SignalBoard,
        metrics: ReadMetrics | None = None,
    ) -> None:
        self.path = path_given(path)
        self._metrics = metrics
        self._writer = _Writer(self.path)
        self._tracks = {
            one.name: _Track(self._writer, number, one.name)
            for number, one in enumerate(drivers, 1)
        }
        self._states: set[str] = set()
        self._watch = board.watch("*:*", self._hear)
        self._remove = [one.instrument(self._around_work) for one in drivers]
        self._remove.append(board.instrument(self._around_call))

    def stop(self) -> None:
        """Close all slices and the file."""
        if not self._remove:
            return
        for remove in self._remove:
            remove()
        self._remove = []
        self._watch.cancel()
        for track in self._tracks.values():
            track.stand_in([])
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # -- what is seen ----------------------------------------------------------------------------

    def _around_work(self, path: str, work: Work) -> Work:
        self._states.add(path)
        around, _, name = path.rpartition(SEPARATOR)
        writer, loops, track = self._writer, _inwards(around), self._track_of(path)
        known = _known(name, "state", {"path": path})
        reads = self._metrics if name in _READ_AFTER else None

        def traced() -> object:
            if not track.is_in(around):  # somebody has moved the machine, or the trace has begun
                track.stand_in(loops)
            begun = writer.now()
            try:
                answer = work()
            finally:
                writer.slice(track.number, known, begun)
            if reads is not None:
                self._count(track, reads())
            return answer

        return traced

    def _around_call(self, subscription: Subscription, part: Part, call: Call) -> Call:
        if subscription.receiver == self._hear:
            return call
        writer, name = self._writer, label_of(subscription.receiver)
        name = name if part == "receiver" else f"when= of {name}"
        known = _known(name, "subscriber", {"signal": subscription.name})

        def traced(sender: Any, moment: Moment) -> Any:
            track, begun = self._track_of(moment.path), writer.now()
            try:
                return call(sender, moment)
            finally:
                writer.slice(track.number, known, begun)

        return traced

    def _hear(self, moment: Moment) -> None:
        path, kind, track = moment.path, moment.kind, self._track_of(moment.path)
        if kind not in (ENTER, EXIT):
            facts = {"source": moment.source, "target": moment.target, "declared for": path}
            self._writer.instant(track.number, kind, facts)
        elif path not in self._states:
            loops = _inwards(path)
            track.stand_in(loops if kind == ENTER else loops[:-1])

    def _count(self, track: _Track, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if math.isfinite(value):
                self._writer.counter(track.number, name, value)

    def _track_of(self, path: str) -> _Track:
        return self._tracks[path.partition(SEPARATOR)[0]]


class _Track:
    """The loops of one machine whose slices are open, outermost first."""

    def __init__(self, writer: _Writer, number: int, name: str) -> None:
        self.number = number
        self._writer = writer
        self._open: list[str] = []
        writer.name_track(number, name)

    def is_in(self, loop: str) -> bool:
        """Whether this is the innermost open loop."""
        return bool(self._open) and self._open[-1] == loop

    def stand_in(self, loops: list[str]) -> None:
        """Close the slices of other loops than these, and open those that are missing."""
        kept, now = 0, self._writer.now()
        while kept < min(len(loops), len(self._open)) and loops[kept] == self._open[kept]:
            kept += 1
        while len(self._open) > kept:
            self._writer.end(self.number, self._open.pop(), now)
        for loop in loops[kept:]:
            self._open.append(loop)
            self._writer.begin(self.number, loop, now)


class _Writer:
    """Writes events, one a line, in blocks of whole lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            # Unbuffered: a process that is forked off must not write what is left here once more.
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise TraceUnwritable(
                f"The trace {path} cannot be written: {error.strerror}. Give another file."
            ) from error
        self._process = os.getpid()
        self._lines: list[str] = ["["]
        self._fails = False
        self._zero = time.perf_counter_ns()
        self._add(0, "process_name", "M", {"args": {"name": "statemachine_trainer"}})

    def now(self) -> float:
        """Return the time in microseconds since the beginning of the trace."""
        return (time.perf_counter_ns() - self._zero) / 1000

    def name_track(self, track: int, name: str) -> None:
        """Give a track its name."""
        self._add(track, "thread_name", "M", {"args": {"name": name}})

    def slice(self, track: int, known: str, begun: float) -> None:
        """Write a slice that ends now."""
        lasts = self.now() - begun
        self._lines.append(
            f'{known}, "ph": "X", "pid": {self._process}, "tid": {track}, "ts": {begun:.3f}, '
            f'"dur": {lasts:.3f}}},'
        )
        if len(self._lines) >= _AT_ONCE:
            self._flush()

    def begin(self, track: int, loop: str, now: float) -> None:
        """Open the slice of a loop."""
        facts = {"cat": "loop", "ts": now, "args": {"path": loop}}
        self._add(track, loop.rpartition(SEPARATOR)[2], "B", facts)

    def end(self, track: int, loop: str, now: float) -> None:
        """Close the slice of a loop."""
        self._add(track, loop.rpartition(SEPARATOR)[2], "E", {"cat": "loop", "ts": now})

    def instant(self, track: int, event: str, facts: Mapping[str, object]) -> None:
        """Write an event that was taken."""
        more = {"cat": "event", "s": "t", "ts": self.now(), "args": facts}
        self._add(track, event, "i", more)

    def counter(self, track: int, name: str, value: float) -> None:
        """Write the value of a metric."""
        facts = {"cat": "metric", "ts": self.now(), "args": {"value": value}}
        self._add(track, name, "C", facts)

    def close(self) -> None:
        """Write what is left, and the bracket that makes it whole JSON."""
        self._add(0, "process_sort_index", "M", {"args": {"sort_index": 0}}, mark="\n]")
        self._flush()
        self._file.close()

    def _add(
        self, track: int, name: str, phase: str, facts: Mapping[str, object], mark: str = ","
    ) -> None:
        event = {"name": name, "ph": phase, "pid": self._process, "tid": track, **facts}
        self._lines.append(json.dumps(event) + mark)
        if len(self._lines) >= _AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        left = memoryview(("\n".join(self._lines) + "\n").encode())
        self._lines.clear()
        try:
            while left and not self._fails:
                left = left[self._file.write(left) :]
        except OSError as error:  # a full disk is no reason to disturb what is traced
            self._fails = True
            _log.warning("The trace %s ends here: %s", self._path, error.strerror)


def _known(name: str, category: str, facts: Mapping[str, object]) -> str:
    """Return all of a slice that is known beforehand, without its closing brace."""
    return json.dumps({"name": name, "cat": category, "args": facts})[:-1]


def _inwards(path: str) -> list[str]:
    """Return a loop's path and those of the loops around it, the outermost first."""
    names = path.split(SEPARATOR)
    return [SEPARATOR.join(names[: depth + 1]) for depth in range(len(names))]
